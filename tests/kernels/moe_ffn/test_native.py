"""The C++ experts: every way through the arithmetic, odd sizes, threads, numbers that are none, and no compiler."""

from __future__ import annotations

import ctypes
import platform
import struct
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor  # noqa: E402 - the skip comes before what needs torch
from torch.nn import functional as F  # noqa: E402

from archbench.hardware import native  # noqa: E402
from archbench.kernels.moe_ffn import _native  # noqa: E402
from archbench.kernels.moe_ffn._grouped import grouped_ffn  # noqa: E402
from archbench.kernels.moe_ffn._products import Activation  # noqa: E402
from archbench.kernels.moe_ffn._routing import Routing  # noqa: E402
from archbench.track import Unavailable  # noqa: E402
from emulated_arm import ARMS, emulated  # noqa: E402

# Wider instructions of this processor are left out, so that the paths of smaller ones run here too.
WAYS: dict[str, tuple[str, ...]] = {"native": ()}
if platform.machine() == "x86_64":
    WAYS["avx2"] = ("-mno-avx512f",)
    WAYS["plain"] = ("-mno-avx512f", "-mno-avx2", "-mno-avx")
ACTIVATIONS: tuple[Activation, ...] = ("swiglu", "relu")
WIDTHS_HIDDEN = [(16, 8), (64, 128), (48, 131), (20, 5), (7, 257), (1, 1), (3, 130)]
COUNTS = [0, 1, 15, 16, 17, 0, 47, 48, 49, 97, 200, 0]  # panels of one, two and three vectors, and several of them
BOUND = 2e-6  # float32 sums of at most 257 terms, gates to 2e-7, against float64


@pytest.fixture(params=WAYS, scope="module")
def compiled(request: pytest.FixtureRequest) -> ctypes.CDLL:
    try:
        path = native.build(_native.SOURCES, WAYS[request.param], (_native.VECTORS,))
    except Unavailable as reason:
        pytest.skip(str(reason))
    return _native.declared(ctypes.CDLL(str(path)))


def drawn(
    width: int, hidden: int, activation: Activation, counts: list[int] = COUNTS, tokens: int = 230
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, the token of each row, w_in, w_out."""
    generator = torch.Generator().manual_seed(width * hidden)
    rows = (2 if activation == "swiglu" else 1) * hidden
    token_A = torch.cat([torch.randperm(tokens, generator=generator)[:count] for count in counts])
    shapes = ((tokens, width), (len(counts), rows, width), (len(counts), hidden, width))
    x, w_in, w_out = (torch.randn(*shape, generator=generator) for shape in shapes)
    return x, token_A, w_in * width**-0.5, w_out * hidden**-0.5


def exact(activation: Activation, x: Tensor, token_A: Tensor, counts: list[int], w_in: Tensor, w_out: Tensor) -> Tensor:
    """(A, D) in float64, expert by expert."""
    said = []
    for rows, into, out in zip(x[token_A].double().split(counts), w_in.double(), w_out.double(), strict=True):
        h = rows @ into.T
        gate, up = h.chunk(2, dim=-1) if activation == "swiglu" else (h, h)
        said.append((F.silu(gate) * up if activation == "swiglu" else gate.relu()) @ out)
    return torch.cat(said)


def assert_right(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert torch.linalg.norm(got.double() - want) <= BOUND * torch.linalg.norm(want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("width", "hidden"), WIDTHS_HIDDEN)
def test_every_way_through_the_arithmetic_is_right(
    compiled: ctypes.CDLL, width: int, hidden: int, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "library", lambda: compiled)
    x, token_A, w_in, w_out = drawn(width, hidden, activation)
    got = _native.forward(activation, x, token_A, COUNTS, w_in, w_out)
    assert_right(got, exact(activation, x, token_A, COUNTS, w_in, w_out))


def test_threads_change_no_bit(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "library", lambda: compiled)
    x, token_A, w_in, w_out = drawn(20, 130, "swiglu")
    said = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        said.append(_native.forward("swiglu", x, token_A, COUNTS, w_in, w_out))
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_so_and_in_its_rows(
    compiled: ctypes.CDLL, activation: Activation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "library", lambda: compiled)
    x, token_A, w_in, w_out = drawn(16, 24, activation)
    clean = _native.forward(activation, x, token_A, COUNTS, w_in, w_out)
    x[3, 5] = torch.nan
    got = _native.forward(activation, x, token_A, COUNTS, w_in, w_out)
    hit = token_A == 3
    assert hit.any()
    assert got[hit].isnan().all()
    assert torch.equal(got[~hit], clean[~hit])


def test_gates_far_from_zero_are_open_or_shut(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "library", lambda: compiled)
    x = torch.tensor([0.0, -1e-30, 1e-30, 20.0, -20.0, 87.0, -87.0, 89.0, -89.0, 1e18, -1e18])
    w_in, w_out = torch.ones(1, 2, 1), torch.ones(1, 1, 1)  # gate and value are x
    got = _native.forward("swiglu", x[:, None], torch.arange(len(x)), [len(x)], w_in, w_out)[:, 0]
    want = F.silu(x.double()) * x.double()
    assert torch.allclose(got.double(), want, rtol=1e-6, atol=1e-33)


def test_nobody_is_asked_where_the_list_is_empty(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "library", lambda: compiled)
    x, token_A, w_in, w_out = drawn(16, 24, "relu", [0, 0])
    assert _native.forward("relu", x, token_A, [0, 0], w_in, w_out).shape == (0, 16)


def test_tensors_in_other_strides_are_read_right(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "library", lambda: compiled)
    given = drawn(16, 24, "swiglu")
    x, token_A, w_in, w_out = (one.repeat_interleave(2, -1)[..., ::2] for one in given)
    got = _native.forward("swiglu", x, token_A, COUNTS, w_in, w_out)
    assert_right(got, exact("swiglu", *given[:2], COUNTS, *given[2:]))


def missing(*_: object) -> ctypes.CDLL:
    raise Unavailable("needs a C++ compiler")


@pytest.mark.parametrize("there", [True, False])
def test_a_layer_asks_for_it_where_nothing_is_kept_and_a_compiler_is_there(
    there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there and _native.library() is None:
        pytest.skip("no C++ compiler")
    asked: list[torch.dtype] = []
    forward = _native.forward

    def counted(activation: Activation, x: Tensor, *rest: object) -> Tensor:
        asked.append(x.dtype)
        return forward(activation, x, *rest)  # type: ignore[arg-type]

    if not there:
        monkeypatch.setattr(native, "load", missing)
        monkeypatch.setattr(_native, "library", _native.library.__wrapped__)
    monkeypatch.setattr(_native, "forward", counted)
    x, token_A, w_in, w_out = drawn(16, 24, "swiglu")
    weight_A = torch.rand(len(token_A))
    routing = Routing(token_A, weight_A, torch.tensor(COUNTS), torch.zeros(()), torch.tensor(0))
    want = torch.zeros(len(x), 16, dtype=torch.float64)
    said = exact("swiglu", x, token_A, COUNTS, w_in, w_out)
    want.index_add_(0, token_A, said * weight_A[:, None])
    assert_right(grouped_ffn(x, routing, w_in, w_out), want)
    assert asked == [torch.float32] * there
    assert_right(grouped_ffn(x.requires_grad_(), routing, w_in, w_out).detach(), want)
    wide = (tensor.detach().double() for tensor in (x, w_in, w_out))
    x64, into64, out64 = wide
    grouped_ffn(x64, routing._replace(weight_A=weight_A.double()), into64, out64)
    assert asked == [torch.float32] * there


@pytest.mark.parametrize("flag", ARMS.values(), ids=ARMS)
def test_neon_is_right_too(flag: str, tmp_path: Path) -> None:
    source = Path(__file__).with_name("emulated_experts.cpp")
    command = emulated(source, flag, tmp_path / "experts", _native.SOURCES, _native.VECTORS)
    counts, tokens, (width, hidden) = [0, 1, 13, 31], 40, (21, 133)
    for activation in ACTIVATIONS:
        x, token_A, w_in, w_out = drawn(width, hidden, activation, counts, tokens)
        sizes = (activation == "swiglu", len(counts), width, hidden, tokens, len(token_A), 2)
        parts = (tensor.numpy().tobytes() for tensor in (token_A, torch.tensor(counts), x, w_in, w_out))
        given = struct.pack("7q", *sizes) + b"".join(parts)
        done = subprocess.run(command, input=given, capture_output=True, check=True)
        got = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view(-1, width)
        assert_right(got, exact(activation, x, token_A, counts, w_in, w_out))
