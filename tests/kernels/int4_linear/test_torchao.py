"""``torchao_int4``: exact weights in torchao's tensors, and the layout of a GPU's, which is not here."""

# ruff: noqa: E402 - the skip comes before what needs torchao
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
pytest.importorskip("torchao", reason="no torchao installed")

from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._gate import gate, make_inputs
from archbench.kernels.int4_linear._weights import Quantised, matrices
from archbench.kernels.int4_linear.torchao_int4 import build, on_cpu, padded
from archbench.track import Unavailable


def test_its_tensors_hold_the_weights_exactly() -> None:
    (matrix,) = matrices(Int4Case(1, 64, 32))
    weight = on_cpu(matrix, torch.float32)
    assert torch.equal(torch.nn.functional.linear(torch.eye(64), weight).T, torch.from_numpy(matrix.dense()))


@pytest.mark.parametrize(("kind", "least"), [("w4a32", 0.0), ("w4a8", 1e-4), ("w4a16", 1e-4)])
def test_activations_are_rounded_where_the_case_allows_it_only(kind: str, least: float) -> None:
    case = Int4Case(5, 128, 48, kind=kind, layers=2)
    (x,) = make_inputs(case, 3, "cpu")
    error = gate(case, (x,), build(case)(x))
    assert least <= error < (1e-6 if kind == "w4a32" else 5e-3)


def test_bytes_for_a_gpu_are_filled_up_with_zeros() -> None:
    codes = np.random.default_rng(1).integers(0, 16, (13, 96), dtype=np.uint8)
    packed, both = padded(Quantised(codes, np.full((13, 3), 0.5, np.float32)))
    assert packed.shape == (16, 512)
    assert both.shape == (32, 16, 2)
    unpacked = torch.stack((packed >> 4, packed & 15), dim=-1).reshape(16, 1024)
    assert torch.equal(unpacked[:13, :96], torch.from_numpy(codes))
    assert (unpacked[:, 96:] == 8).all()
    assert (unpacked[13:] == 8).all()
    assert (both[:3, :13, 0] == 0.5).all()
    assert both.float().sum() == 0.5 * 3 * 13


def test_what_it_does_not_do_is_said() -> None:
    with pytest.raises(Unavailable, match="groups of 32, 64, 128 only, not 16"):
        build(Int4Case(1, 64, 32, group=16))
    with pytest.raises(Unavailable, match="outputs in multiples of 16 and inputs of 32 on a CPU, not 33 x 96"):
        build(Int4Case(1, 96, 33))(torch.zeros(1, 96))
