"""The C++ experts: every way through the arithmetic, odd sizes, threads, numbers that are none, and no compiler."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor  # noqa: E402 - the skip comes before what needs torch
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.fx.experimental.proxy_tensor import make_fx  # noqa: E402
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
BOUND = 2e-6  # of float32 sums of at most 257 terms, against float64


@pytest.fixture(params=WAYS, scope="module")
def compiled(request: pytest.FixtureRequest) -> ctypes.CDLL:
    try:
        path = native.build(_native.SOURCES, WAYS[request.param], (_native.HEADERS,))
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


def test_gates_are_right_one_by_one(compiled: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 unit, gate g and value 1, times 1e30, so that small answers are ordinary numbers."""
    monkeypatch.setattr(_native, "library", lambda: compiled)
    dense = torch.linspace(-87.3, 87.3, 5001)
    g = torch.cat((dense, torch.tensor([0.0, -1e-30, 1e-30, 1e8, -87.34, -88.0, -1e30, -3e38])))
    x = torch.stack((g, torch.ones_like(g)), -1)
    w_out = torch.tensor([[[1e30, 0.0]]])
    got = _native.forward("swiglu", x, torch.arange(len(g)), [len(g)], torch.eye(2)[None], w_out)[:, 0].double()
    shut = g < -87.33
    assert not got[shut].any()
    open_g, got = g[~shut], got[~shut]
    assert (got[open_g == 0] == 0).all()
    g64 = open_g[open_g != 0].double()
    off = (got[open_g != 0] / (F.silu(g64) * w_out[0, 0, 0].double()) - 1).abs()
    assert (off <= 4e-7 + 8e-8 * g64.abs().clamp(max=90)).all()
    overflowing = torch.tensor([[[3e38, 0.0], [0.0, 1.0]]])
    said = _native.forward(
        "swiglu", torch.tensor([[-10.0, 1.0], [10.0, 1.0]]), torch.arange(2), [2], overflowing, w_out
    )
    assert said[:, 0].tolist() == [0, torch.inf]


def test_float32_on_a_cpu_is_all_it_takes() -> None:
    if _native.library() is None:
        pytest.skip("no C++ compiler")
    single = torch.zeros(1)
    assert _native.fits(single, single)
    for other in (single.bfloat16(), single.double(), single.to("meta")):
        assert not _native.fits(single, other)
        assert not _native.fits(other, other)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (
            {"x": (230, 8)},
            ValueError,
            r"x, w_in and w_out do not fit together: \(230, 8\), \(12, 48, 16\), \(12, 24, 16\)",
        ),
        ({"w_in": (3, 48, 16)}, ValueError, "do not fit together"),
        ({"w_out": (12, 24, 8)}, ValueError, "do not fit together"),
        ({"x": (230, 0), "w_in": (12, 48, 0), "w_out": (12, 24, 0)}, ValueError, "do not fit together"),
        ({"counts": [*COUNTS[:-1], 1]}, ValueError, "490 rows of 12 experts, counts"),
        ({"counts": COUNTS[:-1]}, ValueError, "490 rows of 12 experts, counts"),
        ({"x": (229, 16)}, IndexError, "tokens 0 to 229 of 229"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(
    change: dict[str, Any], error: type[Exception], said: str
) -> None:
    if _native.library() is None:
        pytest.skip("no C++ compiler")
    x, token_A, w_in, w_out = drawn(16, 24, "swiglu")
    given = {"x": x, "w_in": w_in, "w_out": w_out, "counts": COUNTS}
    given |= {name: value if name == "counts" else torch.zeros(value) for name, value in change.items()}
    with pytest.raises(error, match=said):
        _native.forward("swiglu", given["x"], token_A, given["counts"], given["w_in"], given["w_out"])


@pytest.mark.parametrize("how", ["int32 tokens", "a view that negates", "a traced graph", "fake"])
def test_tensors_that_are_no_plain_memory_are_right(how: str) -> None:
    if _native.library() is None:
        pytest.skip("no C++ compiler")
    x, token_A, w_in, w_out = drawn(16, 24, "swiglu")
    want = exact("swiglu", x, token_A, COUNTS, w_in, w_out)
    if how == "int32 tokens":
        assert_right(_native.forward("swiglu", x, token_A.int(), COUNTS, w_in, w_out), want)
    elif how == "a view that negates":
        assert_right(_native.forward("swiglu", torch._neg_view(-x), token_A, COUNTS, w_in, w_out), want)
    elif how == "a traced graph":

        def call(x: Tensor) -> Tensor:
            return _native.forward("swiglu", x, token_A, COUNTS, w_in, w_out)

        assert_right(make_fx(call)(torch.zeros_like(x))(x), want)
    else:
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert _native.forward("swiglu", x, token_A, COUNTS, w_in, w_out).shape == want.shape


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


def broken(*_: object) -> ctypes.CDLL:
    raise RuntimeError("c++ failed: no message")


def test_a_compiler_that_does_not_work_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", broken)
    with pytest.warns(
        UserWarning, match=r"multiplied by oneDNN: their C\+\+ is not there \(c\+\+ failed: no message\)"
    ):
        assert _native.library.__wrapped__() is None


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


def given_to_a_program(
    activation: Activation, width: int, hidden: int, counts: list[int], tokens: int
) -> tuple[bytes, Tensor]:
    """What emulated_experts.cpp reads, and what it should say."""
    x, token_A, w_in, w_out = drawn(width, hidden, activation, counts, tokens)
    sizes = (activation == "swiglu", len(counts), width, hidden, tokens, len(token_A), 2)
    parts = (tensor.numpy().tobytes() for tensor in (token_A, torch.tensor(counts), x, w_in, w_out))
    return struct.pack("7q", *sizes) + b"".join(parts), exact(activation, x, token_A, counts, w_in, w_out)


def said_by(command: list[str], given: bytes, width: int) -> Tensor:
    done = subprocess.run(command, input=given, capture_output=True, check=True)
    return torch.frombuffer(bytearray(done.stdout), dtype=torch.float32).view(-1, width)


SOURCE = Path(__file__).with_name("emulated_experts.cpp")


@pytest.mark.parametrize("flag", ARMS.values(), ids=ARMS)
def test_neon_is_right_too(flag: str, tmp_path: Path) -> None:
    command = emulated(SOURCE, flag, tmp_path / "experts", _native.SOURCES, _native.HEADERS)
    for activation in ACTIVATIONS:
        given, want = given_to_a_program(activation, 21, 133, [0, 1, 13, 31], 40)
        assert_right(said_by(command, given, 21), want)


def test_nothing_beyond_the_ends_is_read_or_written(tmp_path: Path) -> None:
    compiler, program = shutil.which("g++"), str(tmp_path / "experts")
    if compiler is None:
        pytest.skip("needs g++")
    flags = ("-O1", "-g0", "-std=c++17", "-fopenmp", "-march=native", "-fsanitize=address")
    includes = (f"-I{_native.SOURCES}", f"-I{_native.HEADERS}")
    done = subprocess.run([compiler, *flags, *includes, str(SOURCE), "-o", program], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"g++ has no address sanitizer: {done.stderr[-200:]}")
    quiet = {
        **os.environ,
        "ASAN_OPTIONS": "detect_leaks=0",
    }  # leaks are looked for through ptrace, which may be forbidden
    for activation in ACTIVATIONS:
        for width, hidden in WIDTHS_HIDDEN:
            given, want = given_to_a_program(activation, width, hidden, COUNTS, 230)
            ended = subprocess.run([program], input=given, capture_output=True, env=quiet)
            if ended.returncode and b"ERROR: AddressSanitizer" not in ended.stderr:
                pytest.skip(f"the address sanitizer does not run here: {ended.stderr[-200:]!r}")
            assert not ended.returncode, ended.stderr.decode()
            assert_right(torch.frombuffer(bytearray(ended.stdout), dtype=torch.float32).view(-1, width), want)
