"""The C++ layers beyond the track's cases: every way through the arithmetic, threads, odd sizes, memory."""

from __future__ import annotations

import ctypes
import gc
import platform
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.hardware import native  # noqa: E402
from archbench.kernels.int4_linear import TRACK, Int4Case  # noqa: E402
from archbench.kernels.int4_linear._gate import gate, make_inputs  # noqa: E402
from archbench.kernels.int4_linear._weights import matrices  # noqa: E402
from archbench.kernels.int4_linear.cpu_native_w4a8 import SOURCES, Linear, blocks, build  # noqa: E402
from archbench.track import Unavailable  # noqa: E402
from emulated_arm import ARMS, emulated  # noqa: E402

# Wider instructions of this processor are left out, so that the paths of smaller ones run here too.
WAYS: dict[str, tuple[str, ...]] = {"native": ()}
if platform.machine() == "x86_64":
    WAYS["avx2"] = ("-mno-avx512f",)
    WAYS["plain"] = ("-mno-avx512f", "-mno-avx2", "-mno-avx")
CASES = [
    *(case for case in TRACK.test_cases if case.kind == "w4a8"),
    Int4Case(1, 32, 1, threads=1),
    Int4Case(12, 64, 16),  # a group of tokens, and one more or fewer
    Int4Case(11, 96, 17),
    Int4Case(25, 96, 15, threads=3),
    Int4Case(700, 256, 40),  # more than a piece of activations
]


EMULATED = [Int4Case(1, 96, 33, layers=2), Int4Case(13, 160, 20, threads=2)]


@pytest.fixture(params=WAYS, scope="module")
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(native.build(SOURCES, WAYS[request.param])))
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_every_way_through_the_arithmetic_is_right(library: ctypes.CDLL, case: Int4Case) -> None:
    (x,) = make_inputs(case, 5, "cpu")
    assert 0 < gate(case, (x,), Linear(library, case)(x)) < 0.05


def test_threads_change_no_bit(library: ctypes.CDLL) -> None:
    case = Int4Case(30, 128, 70, layers=2)
    (x,) = make_inputs(case, 5, "cpu")
    one, four = (Linear(library, replace(case, threads=threads))(x) for threads in (1, 4))
    assert torch.equal(one, four)


def test_zeros_give_zeros_and_a_row_of_them_disturbs_no_other(library: ctypes.CDLL) -> None:
    case = Int4Case(3, 64, 20)
    (x,) = make_inputs(case, 5, "cpu")
    x[1] = 0
    y = Linear(library, case)(x)
    assert (y[0, 1] == 0).all()
    assert gate(case, (x,), y) > 0


def test_what_is_not_finite_stays_so_and_in_its_token(library: ctypes.CDLL) -> None:
    case = Int4Case(4, 96, 20)
    (x,) = make_inputs(case, 5, "cpu")
    linear = Linear(library, case)
    want = linear(x)
    x[0, 40], x[1, 95], x[2, 3] = float("nan"), float("inf"), -float("inf")
    y = linear(x)
    assert not y[0, :3].isfinite().any()
    assert torch.equal(y[0, 3], want[0, 3])


def test_the_smallest_numbers_are_no_garbage(library: ctypes.CDLL) -> None:
    case = Int4Case(2, 64, 20)
    (x,) = make_inputs(case, 5, "cpu")
    x[0] *= 1e-40 / x[0].abs().max()
    x[1, :32] *= 1e-30
    y = Linear(library, case)(x)
    assert (y[0, 0].abs() < 1e-38).all()
    x[0], y[0, 0] = 0, 0
    assert gate(case, (x,), y) < 0.05


def test_an_x_of_another_shape_is_refused() -> None:
    linear = build(Int4Case(4, 64, 20))
    with pytest.raises(ValueError, match=r"x is \(5, 64\): made for \(4, 64\)"):
        linear(torch.zeros(5, 64))


def test_inputs_that_are_not_contiguous_are_right() -> None:
    case = Int4Case(4, 64, 20)
    (x,) = make_inputs(case, 5, "cpu")
    assert gate(case, (x,), build(case)(x.T.contiguous().T)) > 0


@pytest.mark.parametrize("flag", ARMS.values(), ids=ARMS)
def test_neon_is_right_too(flag: str, tmp_path: Path) -> None:
    command = emulated(Path(__file__).with_name("emulated_linear.cpp"), flag, tmp_path / "linear", SOURCES)
    for case in EMULATED:
        (x,) = make_inputs(case, 5, "cpu")
        raws = [blocks(matrix) for matrix in matrices(case)]
        sizes = (case.layers, case.tokens, case.outputs, case.inputs, case.threads or 1, raws[0].strides[0])
        given = struct.pack("6i", *sizes) + b"".join(raw.tobytes() for raw in raws) + x.numpy().tobytes()
        done = subprocess.run(command, input=given, capture_output=True, check=True)
        y = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
        assert 0 < gate(case, (x,), y.view(case.layers, case.tokens, case.outputs)) < 0.05


def test_memory_is_given_back() -> None:
    case = Int4Case(1, 4096, 4096, layers=4)  # 38 MB packed
    resident = psutil.Process().memory_info
    build(replace(case, layers=1))
    gc.collect()
    before = resident().rss
    kept = build(case)
    held = resident().rss - before
    del kept
    gc.collect()
    assert held > 20e6
    assert resident().rss - before < held - 20e6


@pytest.mark.parametrize(
    ("sizes", "said"), [({"kind": "w4a32"}, "w4a8 only"), ({"group": 16}, "groups of multiples of 32 only, not 16")]
)
def test_what_it_does_not_do_is_said(sizes: dict[str, str], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        build(replace(Int4Case(1, 64, 8), **sizes))
