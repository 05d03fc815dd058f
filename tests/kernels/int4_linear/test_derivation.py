"""The equations of docs/derivations/quantization.md on bits, bytes and time, on the track's cases and matrices."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from archbench.cells import Ceiling
from archbench.harness.physics import floor
from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._weights import matrices

H100 = Path(__file__).resolve().parents[3] / "hardware" / "profiles" / "h100-sxm.toml"
LARGE = Int4Case(1, 16384, 16384, kind="w4a16")


@dataclass(frozen=True)
class Dense(Int4Case):
    """The same layer with weights of 16 bits and no steps."""

    @property
    def weight_bytes(self) -> float:
        return 2.0 * self.layers * self.outputs * self.inputs


def data_sheet() -> list[Ceiling]:
    known = tomllib.loads(H100.read_text(encoding="utf-8"))
    peak = next(table["bf16"] for table in known.values() if isinstance(table, dict) and "bf16" in table)
    bandwidth = next(table["memory_bytes_per_s"] for table in (known, *known.values()) if "memory_bytes_per_s" in table)
    return [Ceiling("matrix", peak, "op/s", dtype="bf16"), Ceiling("read", bandwidth, "B/s")]


def seconds(case: Int4Case, tokens: int) -> tuple[float, str]:
    found = floor(replace(case, tokens=tokens), data_sheet(), cache_bytes=0)
    assert found is not None
    return found.seconds, found.kind


def test_equation_14_bits_of_a_weight() -> None:
    for group, said in ((32, 4.5), (128, 4.125), (16, 5.0)):
        case = Int4Case(1, 256, 48, group=group)
        (matrix,) = matrices(case)
        stored = matrix.pairs().nbytes + matrix.scales.astype(np.float16).nbytes
        assert 8 * stored / matrix.codes.size == 4 + 16 / group == said
        assert 8 * case.weight_bytes == stored * 8
        assert np.array_equal(matrix.scales.astype(np.float16).astype(np.float32), matrix.scales), "16 bits are enough"


def test_equation_15_sums_fit_into_32_bits() -> None:
    for b, a in ((4, 8), (4, 4), (8, 8)):
        columns = math.ceil(2**31 / (2 ** (b - 1) * (2**a - 1))) - 1  # the most that (15) allows
        largest = 2 ** (b - 1) * (2**a - 1)  # the lowest weight times the highest activation
        assert columns * largest < 2**31 <= (columns + 1) * largest
        products = np.array([columns, columns + 1], dtype=np.int64) * largest
        kept = products.astype(np.uint32).view(np.int32)
        assert (kept[0] == products[0], kept[1] == products[1]) == (True, False)
    assert pytest.approx(1.05e6, rel=0.01) == 2**31 / (8 * 255)


def test_equation_31_bytes_of_a_layer() -> None:
    for kind, q in (("w4a8", 4), ("w4a16", 2)):
        for group in (32, 64):
            case = Int4Case(5, 256, 48, kind=kind, group=group)
            (matrix,) = matrices(case)
            weights = matrix.pairs().nbytes + 2 * matrix.scales.size
            assert weights == 48 * 256 * (4 / 8 + 2 / group)
            assert case.bytes_moved() == weights + q * 5 * (256 + 48)
            assert case.flops() == 2 * 5 * 256 * 48


def test_equation_32_operations_a_byte_at_one_token() -> None:
    want = 2 / (4 / 8 + 2 / 32)
    assert want == pytest.approx(3.6, abs=0.05)
    assert LARGE.flops() / LARGE.bytes_moved() == pytest.approx(want, rel=1e-3)
    small = Int4Case(1, 384, 1536)
    assert 0.9 * want < small.flops() / small.bytes_moved() < want


def test_equation_33_where_memory_stops_to_bind() -> None:
    rate, bandwidth = (ceiling.value for ceiling in data_sheet())
    for case, bytes_of, said in ((LARGE, 4.5 / 8, 83), (Dense(1, 16384, 16384, kind="w4a16"), 2.0, 295)):
        star = rate * bytes_of / (2 * bandwidth)
        assert star == pytest.approx(said, abs=0.5)
        bound = [seconds(case, tokens)[1] for tokens in range(1, 400)]
        turn = bound.index("matrix")
        assert set(bound[:turn]) == {"bandwidth"}
        assert set(bound[turn:]) == {"matrix"}
        assert star < turn + 1 < 1.1 * star, "what goes in and out is read as well"


def test_equation_34_what_weights_of_4_bits_gain() -> None:
    rate, bandwidth = (ceiling.value for ceiling in data_sheet())
    four, sixteen = (rate * bytes_of / (2 * bandwidth) for bytes_of in (4.5 / 8, 2.0))
    assert sixteen / four == pytest.approx(2 / (4 / 8 + 2 / 32))
    assert sixteen == pytest.approx(rate / bandwidth)
    dense = Dense(1, 16384, 16384, kind="w4a16")
    gains = []
    for tokens in (1, 32, 83, 128, 197, 256, 320, 1024):
        gains.append(seconds(dense, tokens)[0] / seconds(LARGE, tokens)[0])
        assert gains[-1] == pytest.approx(max(tokens, sixteen) / max(tokens, four), rel=0.08)
    assert gains[0] == pytest.approx(3.6, abs=0.1)
    assert gains[-2:] == [1.0, 1.0]
