"""``cuda_tiled`` without a GPU: its kernels run on a CPU that plays one, and compile for real ones within their budget.

``tests/kernels/cuda_on_host`` is the CPU's machine: a thread is a fiber, the instructions do what PTX defines, shared
memory starts as NaN, and races, accesses out of bounds and deadlocks end the launch. That it sees them is tested, too.
"""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.checks import Wrong
from archbench.kernels.attention import TRACK, AttentionCase, cuda_tiled
from archbench.kernels.attention.cuda_tiled import CONTENDER, SOURCES, Problem, flash_backward, flash_forward
from archbench.track import Unavailable

MACHINE = Path(__file__).parents[1] / "cuda_on_host"
COMPILER = shutil.which("g++") or ""
FLAGS = (
    *("-O1", "-std=c++17", "-fPIC", "-shared", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"),
)
WRITTEN = {
    "forward": ("out", "logsumexp"),
    "row_sums": ("row_sum",),
    "backward_keys": ("dk", "dv"),
    "backward_queries": ("dq",),
}

pytestmark = pytest.mark.skipif(not COMPILER, reason="needs g++, which compiles the kernels for the CPU")


class Range(ctypes.Structure):
    """A tensor the kernels may touch, as ``launch.cpp`` declares it."""

    _fields_ = (("data", ctypes.c_void_p), ("bytes", ctypes.c_longlong), ("writable", ctypes.c_int))


def tensor_map(address: int, sizes: tuple[int, int, int], box_rows: int) -> ctypes.Array[Any]:
    """What the machine's copy engine reads."""
    heads, rows, columns = sizes
    return (ctypes.c_uint64 * 16)(address, columns, rows, heads, box_rows)


class Host:
    """Kernels compiled for this CPU, and the launcher that stands in for the GPU's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hopper, self.seed = False, 0
        self.libraries: dict[tuple[Any, ...], ctypes.CDLL] = {}
        self.machine = folder / "machine.so"
        units = [MACHINE / f"{name}.cpp" for name in ("machine", "memory", "instructions", "hopper")]
        self.compile(self.machine, "-O3", "-march=native", f"-I{MACHINE}", *map(str, units))

    def compile(self, library: Path, *arguments: str) -> None:
        subprocess.run([COMPILER, *FLAGS, *arguments, "-o", str(library)], check=True)

    def library(self, sources: Path, head_dim: int, causal: bool, dtype: torch.dtype) -> ctypes.CDLL:
        key = (sources, head_dim, causal, dtype)
        if key not in self.libraries:
            path = self.folder / f"{len(self.libraries)}.so"
            options = [f"-D{define}" for define in cuda_tiled.defines(head_dim, causal, dtype)]
            files = [*map(str, sorted(sources.glob("*.cu"))), str(MACHINE / "launch.cpp")]
            self.compile(
                path, f"-I{MACHINE}", f"-I{sources}", *options, "-x", "c++", *files, "-x", "none", str(self.machine)
            )
            library = ctypes.CDLL(str(path))
            library.launch.restype = ctypes.c_char_p
            self.libraries[key] = library
        return self.libraries[key]

    def launcher(self, device: Any, head_dim: int, causal: bool, dtype: torch.dtype) -> Callable[..., None]:
        """Stands in for ``cuda_tiled.launcher``."""
        return self.launcher_of(SOURCES, head_dim, causal, dtype)

    def launcher_of(self, sources: Path, head_dim: int, causal: bool, dtype: torch.dtype) -> Callable[..., None]:
        library = self.library(sources, head_dim, causal, dtype)
        described = cuda_tiled.launches(head_dim, self.hopper)

        def launch(name: str, blocks: int, problem: Problem) -> None:
            how = described[name]
            heads = blocks * problem.shared if name == "backward_keys" else blocks
            rows = {"logsumexp": heads * 4, "row_sum": heads * 4}
            rows |= dict.fromkeys(("k", "v", "dk", "dv"), heads // problem.shared * head_dim * 2)
            ranges = [
                Range(data, rows.get(tensor, heads * head_dim * 2) * problem.length, tensor in WRITTEN[name])
                for tensor, kind in Problem._fields_
                if kind is ctypes.c_void_p and (data := getattr(problem, tensor))
            ]
            argument = cuda_tiled.argument(how, problem, heads, head_dim, tensor_map)
            storage = (ctypes.c_char * (ctypes.sizeof(argument) + 128))()
            aligned = type(argument).from_buffer(storage, -ctypes.addressof(storage) % 128)
            ctypes.memmove(ctypes.addressof(aligned), ctypes.addressof(argument), ctypes.sizeof(argument))
            said = library.launch(
                *(getattr(library, how.kernel), ctypes.byref(aligned), bool(how.mapped_rows)),
                *((Range * len(ranges))(*ranges), len(ranges)),
                *(-(-problem.length // how.rows), blocks, how.threads, how.shared_bytes, self.seed),
            )
            if said:
                raise RuntimeError(f"{name}: {said.decode()}")

        return launch


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("cuda_on_host"))


@pytest.fixture
def host(compiled: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(cuda_tiled, "launcher", compiled.launcher)
    # What torch.empty returns is NaN: a row that no kernel writes shows.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    compiled.hopper, compiled.seed = False, 0
    yield compiled
    torch.use_deterministic_algorithms(deterministic)


def answers(case: AttentionCase, seed: int = 21) -> tuple[tuple[Any, ...], Any]:
    """Inputs and what the workload returns, values strided as a model hands them over."""
    inputs = TRACK.make_inputs(case, seed, "cpu")
    strided = tuple(tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs)
    return inputs, TRACK.workload(case, lambda q, k, v: flash_forward(q, k, v, case.causal)[0])(*strided)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_it_is_right(host: Host, head_dim: int, dtype: str, causal: bool) -> None:
    errors = []
    for length, batch, heads, groups in ((1, 2, 2, 2), (63, 1, 4, 1), (100, 2, 4, 2), (127, 1, 2, 2), (257, 1, 2, 1)):
        for hopper in (False, True):  # they share the backward
            host.hopper = hopper
            case = AttentionCase(batch, heads, groups, length, head_dim, causal, dtype, backward=hopper)
            inputs, outputs = answers(case)
            errors.append(TRACK.gate(case, inputs, outputs))
    assert max(errors) < {"bf16": 4e-3, "fp16": 5e-4}[dtype]


@pytest.mark.parametrize("hopper", [False, True], ids=["ampere", "hopper"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_no_order_of_execution_changes_a_bit(host: Host, head_dim: int, hopper: bool) -> None:
    host.hopper = hopper
    case = AttentionCase(heads=2, kv_heads=1, length=280, head_dim=head_dim, causal=True, dtype="bf16", backward=True)
    _, expected = answers(case)
    for seed in (1, 2, 3):
        host.seed = seed
        _, outputs = answers(case)
        for name, one, other in zip(("out", "dq", "dk", "dv"), expected, outputs, strict=True):
            assert torch.equal(one, other), (name, seed)


def test_large_scores_do_not_overflow(host: Host) -> None:
    case = AttentionCase(heads=1, length=150, causal=True, dtype="bf16", backward=True)
    q, k, v, dout = TRACK.make_inputs(case, 3, "cpu")
    inputs = (q * 30, k * 30, v, dout)
    for host.hopper in (False, True):
        out, logsumexp = flash_forward(*inputs[:3], True)
        scores = (inputs[0].double() @ inputs[1].double().mT / 8).masked_fill(
            torch.ones(150, 150).triu(1) > 0, -torch.inf
        )
        assert torch.allclose(out.double(), scores.softmax(-1) @ v.double(), atol=0.03)
        assert torch.allclose(logsumexp.double() * 0.6931471805599453, scores.logsumexp(-1), rtol=1e-5)
        grads = flash_backward(*inputs[:3], out, logsumexp, dout, True)
        assert all(grad.isfinite().all() for grad in grads)


def test_the_operators_are_registered_as_torch_wants_them(host: Host) -> None:
    case = AttentionCase(heads=2, kv_heads=1, length=20, causal=True, dtype="bf16", backward=True)
    q, k, v, dout = TRACK.make_inputs(case, 22, "cpu")
    out, logsumexp = flash_forward(q, k, v, True)
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    torch.library.opcheck(flash_forward, (*leaves, True))
    torch.library.opcheck(flash_backward, (q, k, v, out, logsumexp, dout, True))


# What somebody may get wrong: (file, its text, the text instead, what the launch or the gate says of it).
RACE, WRONG = "a race in shared memory|a copy to it is under way", "values are off|values are not finite"
BREAKAGES = {
    "K is overwritten while others read it": ("forward.cu", "block_barrier();  // V", "//", RACE),
    "V is overwritten while others read it": ("forward.cu", "block_barrier();  // K", "//", RACE),
    "nobody waits for V": (
        "forward.cu",
        "copy_wait<0>();\n        block_barrier();  // V",
        "block_barrier();  //",
        RACE,
    ),
    "some warps leave out a barrier": (
        "forward.cu",
        "block_barrier();  // V",
        "if (row) block_barrier();  //",
        "barrier",
    ),
    "lanes part": (
        "softmax.cuh",
        "top = fmaxf(top, shuffle_xor(top, 2));",
        "if (top > 1) top = shuffle_xor(top, 2);",
        "diverge",
    ),
    "rows are read beyond the end": (
        "tiles.cuh",
        "exists = at < length",
        "exists = at < length + 64",
        "outside of every",
    ),
    "rows are written beyond the end": ("tiles.cuh", "if (first + at < length)", "", "outside of every"),
    "a tile beyond shared memory": (
        "forward.cu",
        "k_tile + TILE_BYTES<BLOCK_K>",
        "k_tile + 65536",
        "outside of shared",
    ),
    "rows leave before all are there": ("tiles.cuh", "    }\n    warp_barrier();\n", "    }\n", RACE),
    "another swizzle to read with": ("tiles.cuh", "((lane_index() / 8 % 2) ^", "(1 ^ (lane_index() / 8 % 2) ^", WRONG),
    "parts of a fragment exchanged": (
        "tiles.cuh",
        "left[1] = pack(low[2], low[3])",
        "left[1] = pack(low[3], low[2])",
        WRONG,
    ),
    "the diagonal hidden": ("softmax.cuh", "at <= query", "at < query", WRONG),
    "the output does not shrink": ("softmax.cuh", "sums[n][i] *= factor[i / 2];", "sums[n][i] *= factor[0];", WRONG),
    "nobody waits for K on Hopper": (
        "forward_wgmma.cu",
        "if (block < blocks) barrier_wait",
        "if (block < 0) barrier_wait",
        "under way|deadlock",
    ),
    "no wait for the scores": ("forward_wgmma.cu", "wgmma_wait<1>();", "", WRONG),
    "weights are replaced under way": (
        "forward_wgmma.cu",
        "wgmma_wait<0>();\n        settle(out);\n        release",
        "release",
        f"{WRONG}|under way",
    ),
    "V is released too early": (
        "forward_wgmma.cu",
        "wgmma_wait<0>();\n        settle(out);\n        release(at.v_free(before));",
        "release(at.v_free(before)); wgmma_wait<0>();",
        "under way",
    ),
    "a phase is mistaken": (
        "forward_wgmma.cu",
        "(block / STAGES + 1) % 2",
        "block / STAGES % 2",
        "more arrivals",
    ),
    "half of a tile is announced": (
        "forward_wgmma.cu",
        "barrier_init(at.q_here(), 1)",
        "barrier_init(at.q_here(), 2)",
        "deadlock",
    ),
    "panels in the wrong place": (
        "forward_wgmma.cu",
        "matrix(v + step * 16 * 128,",
        "matrix(v + step * 8 * 128,",
        WRONG,
    ),
    "dK without its mask": ("backward.cu", "if (diagonal && ahead", "if (false && ahead", WRONG),
    "row sums of other rows": ("backward.cu", "(STREAMED + chunk + column)", "(STREAMED + column)", WRONG),
    "tiles are overwritten while read": ("backward.cu", "block_barrier();  // this", "//", RACE),
}


@pytest.mark.parametrize("what", BREAKAGES)
def test_the_machine_sees(what: str, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, text, instead, said = BREAKAGES[what]
    host.hopper = file == "forward_wgmma.cu"
    backward = file == "backward.cu"
    units = {"forward_wgmma.cu" if host.hopper else "forward.cu", *(["backward.cu"] if backward else [])}
    for path in SOURCES.iterdir():
        if path.suffix == ".cuh" or path.name in units:
            shutil.copy(path, tmp_path)
    source = (tmp_path / file).read_text()
    assert text in source
    (tmp_path / file).write_text(source.replace(text, instead))
    monkeypatch.setattr(cuda_tiled, "launcher", lambda device, *key: host.launcher_of(tmp_path, *key))
    case = AttentionCase(heads=2, kv_heads=1, length=390, causal=True, dtype="bf16", backward=backward)
    with pytest.raises((RuntimeError, Wrong), match=said):
        in_several_orders(host, case)


def in_several_orders(host: Host, case: AttentionCase) -> None:
    for host.seed in range(4):
        inputs, outputs = answers(case)
        TRACK.gate(case, inputs, outputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("head_dim", [64, 128])
def test_it_is_right_on_a_gpu(head_dim: int) -> None:
    for length, groups, causal, dtype in ((1, 4, True, "bf16"), (127, 2, False, "fp16"), (1000, 1, True, "bf16")):
        case = AttentionCase(2, 4, groups, length, head_dim, causal, dtype, backward=True)
        inputs = TRACK.make_inputs(case, 5, "cuda")
        first, again = (TRACK.workload(case, CONTENDER.build(case))(*inputs) for _ in range(2))
        TRACK.gate(case, inputs, first)
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize(("sizes", "said"), [({"head_dim": 32, "dtype": "bf16"}, "64 and 128"), ({}, "not fp32")])
def test_it_says_what_it_cannot_do(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        CONTENDER.build(AttentionCase(**sizes))
