"""The C++ kernels beyond the track's cases: odd sizes, narrower vectors, both kinds of stores, threads, large means."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.checks import Wrong  # noqa: E402 - the skip comes before what needs torch
from archbench.hardware import native  # noqa: E402
from archbench.kernels.norm import TRACK, NormCase, _workload  # noqa: E402
from archbench.kernels.norm.cpu_native import CONTENDER, SOURCES, call_of, stream_from  # noqa: E402
from archbench.track import Unavailable  # noqa: E402

THROUGH, AROUND = 1 << 60, 0  # results of so many bytes are written around the cache

# Wider instructions of this processor are left out, so that the paths of smaller ones run here too.
WAYS: dict[str, tuple[str, ...]] = {"native": ()}
if platform.machine() == "x86_64":
    WAYS["avx2"] = ("-mno-avx512f",)
    WAYS["narrow"] = ("-mno-avx512f", "-mno-avx2", "-mno-avx")  # the vectors of NEON


@pytest.fixture(params=WAYS, scope="module")
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(native.build(SOURCES, WAYS[request.param])))
    except native.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def any_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def work(library: ctypes.CDLL, case: NormCase, inputs: Any, stream_from: int = THROUGH) -> list[Any]:
    found = TRACK.workload(case, call_of(library, case, stream_from))(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


IMAGES = [(2, 1, 1, 1), (1, 3, 4, 5), (3, 5, 1, 17), (5, 2, 16, 16), (2, 37, 3, 3), (2, 3, 91, 47), (17, 8, 4, 4)]
TOKENS = [(1, 1, 2), (2, 3, 15), (1, 65, 16), (3, 43, 67), (1, 130, 64), (1, 2, 5003)]
CASES = [
    *(NormCase("batch_train", shape) for shape in IMAGES),
    *(NormCase("batch_train", shape, channels_last=True) for shape in [*IMAGES, (3, 130, 20, 20)]),
    *(NormCase("batch_eval", shape, channels_last=last) for shape in IMAGES for last in (False, True)),
    *(NormCase("instance", shape) for shape in IMAGES[1:]),
    *(NormCase("group", (n, 4 * c, h, w), groups=c) for n, c, h, w in IMAGES),
    *(NormCase(kind, shape) for kind in ("layer", "rms") for shape in TOKENS),
]


@pytest.mark.parametrize("stream", [THROUGH, AROUND], ids=["through", "around"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_values_and_gradients(library: ctypes.CDLL, case: NormCase, dtype: str, stream: int) -> None:
    case = replace(case, dtype=dtype, backward=True)
    inputs = TRACK.make_inputs(case, 9, "cpu")
    TRACK.gate(case, inputs, work(library, case, inputs, stream))


SOME = [
    NormCase("batch_train", (4, 7, 9, 9), backward=True),
    NormCase("batch_train", (4, 7, 19, 19), channels_last=True, backward=True),
    NormCase("batch_eval", (4, 7, 9, 9), backward=True),
    NormCase("group", (3, 12, 9, 9), groups=3, backward=True),
    NormCase("layer", (2, 150, 33), backward=True),
    NormCase("rms", (2, 150, 33), backward=True),
]


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.slug)
def test_any_number_of_threads_gives_the_same_bits(library: ctypes.CDLL, case: NormCase, any_threads: None) -> None:
    inputs = TRACK.make_inputs(case, 2, "cpu")
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(work(library, case, inputs))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.slug)
def test_inputs_may_lie_anyhow_in_memory(library: ctypes.CDLL, case: NormCase) -> None:
    x, *rest, dy = TRACK.make_inputs(case, 2, "cpu")
    strided = [tensor.transpose(0, -1).contiguous().transpose(0, -1) for tensor in (x, dy)]
    shifted = [torch.cat((one.flatten()[:1], one.flatten()))[1:].view(one.shape) for one in (x, dy)]  # unaligned
    assert not strided[0].is_contiguous()
    plain = work(library, case, (x, *rest, dy))
    for one, other in (strided, shifted):
        again = work(library, case, (one, *rest, other))
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.slug)
@pytest.mark.parametrize("first", [None, 0.0, -1e6])
def test_a_large_mean_costs_nothing(library: ctypes.CDLL, case: NormCase, first: float | None) -> None:
    """Mean 10,000 and deviation 1; and a first element far from all others, which must not become the pivot."""
    x, weight, *rest, dy = TRACK.make_inputs(case, 6, "cpu")
    x = (torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) + 1e4).to(memory_format=_layout(case))
    if first is not None:
        x[(0,) * x.dim()] = first
    if case.kind == "batch_eval":
        rest[1:] = [torch.full_like(weight, 1e4), torch.ones_like(weight)]
    inputs = (x, weight, *rest, dy)
    found = work(library, case, inputs)
    TRACK.gate(case, inputs, found)
    if first is None and case.kind != "rms":
        # The bound of the gate grows with the mean. This kernel's error does not.
        assert (found[0] - _workload.reference(case, *inputs)[0]).abs().max() < 4e-6


def _layout(case: NormCase) -> Any:
    return torch.channels_last if case.channels_last else torch.contiguous_format


def test_gradients_that_nobody_asked_for_are_not_there(library: ctypes.CDLL) -> None:
    case = SOME[0]
    x, weight, bias, *running, dy = TRACK.make_inputs(case, 2, "cpu")
    call = call_of(library, case, THROUGH)
    with torch.no_grad():
        assert not call(x, weight.requires_grad_(), bias, *running)[0].requires_grad
    y, *statistics = call(x, weight, bias, *running)
    assert [one.requires_grad for one in (y, *statistics)] == [True, False, False]
    (dweight,) = torch.autograd.grad(y, weight, dy.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dweight.sum().backward()


def test_the_gate_sees_a_kernel_that_forgets_the_tail(library: ctypes.CDLL) -> None:
    case = replace(SOME[0], backward=False)
    inputs = TRACK.make_inputs(case, 2, "cpu")
    y, *statistics = work(library, case, inputs)
    y[..., -1, -1] = 0
    with pytest.raises(Wrong, match="y"):
        TRACK.gate(case, inputs, [y, *statistics])


def test_what_it_cannot_do_it_says_at_once() -> None:
    with pytest.raises(Unavailable, match="not fp64"):
        CONTENDER.build(NormCase("rms", (1, 2, 3), dtype="fp64"))
    with pytest.raises(Unavailable, match="group has no kernel for channels_last"):
        CONTENDER.build(NormCase("group", (1, 4, 3, 3), groups=2, channels_last=True))
    assert stream_from() > 1 << 20


def test_the_sources_are_in_the_package() -> None:
    assert {path.suffix for path in SOURCES.iterdir()} == {".cpp", ".hpp"}
