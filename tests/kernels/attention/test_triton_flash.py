"""``triton_flash`` without a GPU: right in the interpreter, and compiled for real GPUs as its speed needs it."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
triton = pytest.importorskip("triton", reason="no Triton for this platform")

from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention import _triton_flash_backward as split
from archbench.kernels.attention import _triton_flash_forward as once
from archbench.kernels.attention import _triton_flash_fused as fused
from archbench.kernels.attention._triton_flash_launch import ROWS
from archbench.kernels.attention._triton_flash_space import KERNELS, Config, Kernel, shared_bytes, space
from archbench.kernels.attention.triton_flash import CONTENDER
from archbench.track import Unavailable

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ROOM = {8: 99 * 1024, 9: 227 * 1024}  # bytes a block may have on sm_86 (sm_80 gives more) and on sm_90
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])
SPILL_BYTES = 40  # of a thread: ten words
# The blocks with the widest products of the one-pass backward are worth some forty words; the clock decides.
WIDE, WIDE_SPILL_BYTES = ("fused", 128, Config(64, 128, 8, 2, True)), 168
FP32_SPILL_BYTES = 64  # exact products live in registers, where a few words may find no room

FUNCTIONS: dict[Kernel, Any] = {
    "forward": once.forward,
    "keys": split.backward_keys,
    "queries": split.backward_queries,
    "fused": fused.backward_fused,
}
TILES = {
    **dict.fromkeys(("q_all", "dout_all", "out_all", "dq_all", "sums_all"), "BLOCK_Q"),
    **dict.fromkeys(("k_all", "v_all", "dk_all", "dv_all"), "BLOCK_K"),
}
NUMBERS = {
    **dict.fromkeys(("logsumexp_base", "row_sum_base", "row_bound_base"), "fp32"),
    **dict.fromkeys(("sums_all", "sums_base", "bounds_base"), "i32"),
}

compiles = [
    pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton has no NVIDIA tools"),
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled"),
]


@pytest.mark.skipif(
    TRITON < (3, 7) and NUMPY >= (2, 4), reason="the interpreter of Triton 3.6 does not run with NumPy 2.4 or later"
)
def test_it_is_right_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("interpreted_flash.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
    assert done.stdout.count("SUCCESS") == 8, done.stdout  # four checks of each operator
    errors = [float(error) for error in re.findall(r"^b\S+ (\S+)$", done.stdout, re.MULTILINE)]
    assert len(errors) == 20  # eight cases of the operators, three ways of four shapes
    assert max(errors) < 0.01
    outlier = re.search(r"^outlier (\S+)$", done.stdout, re.MULTILINE)
    assert outlier
    assert float(outlier[1]) < 1e-3  # fp16 rounds at 5e-4


@dataclass(frozen=True)
class Compiled:
    """What a kernel became."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread that found no register
    shared: int  # bytes of a block
    ttgir: str
    ptx: str


def compiled_for(capability: int, kernel: Any, constants: dict[str, Any], config: Config, dtype: str) -> Compiled:
    """Compile a kernel for a GPU that need not be here. EVEN means that the length is a multiple of every block."""
    signature, divisible, values = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        kind = NUMBERS.get(name, dtype)
        if name in constants:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
        elif name in TILES and config.tma:
            signature[name] = f"tensordesc<{kind}[1, {constants[TILES[name]]}, {constants['HEAD_DIM']}]>"
        elif name in TILES or name.endswith("_base"):
            signature[name] = f"*{kind}"
            divisible[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
            if name == "length" and constants.get("EVEN"):
                divisible[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, values, divisible),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    cubin = Path(os.environ["TRITON_CACHE_DIR"]).with_name("kernel.cubin")
    cubin.write_bytes(compiled.asm["cubin"])
    told = subprocess.run(
        [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    assert found, told
    spilled = int(found[2]) + int(found[3])
    return Compiled(int(found[1]), spilled, compiled.metadata.shared, compiled.asm["ttgir"], compiled.asm["ptx"])


def constants_of(config: Config, head_dim: int, causal: bool, even: bool) -> dict[str, Any]:
    blocks = {"BLOCK_Q": config.block_q, "BLOCK_K": config.block_k}
    flags = {"CAUSAL": causal, "EVEN": even, "TMA": config.tma, "REDUCE": config.tma, "WIDEN": False}
    return {"HEAD_DIM": head_dim, **blocks, **flags}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def cases() -> list[Any]:
    """The first configuration of every kernel; the causal mask compiles both loops."""
    found = []
    for capability in (80, 90):
        for kernel in KERNELS:
            for head_dim in (64, 128):
                config = space(kernel, head_dim, torch.bfloat16, capability // 10)[0]
                label = f"sm_{capability}-{kernel}-d{head_dim}"
                found.append(pytest.param(capability, kernel, head_dim, config, id=label))
    return found


@pytest.mark.usefixtures("_own_cache")
class TestCompiled:
    pytestmark = compiles

    @pytest.mark.parametrize(("capability", "kernel", "head_dim", "config"), cases())
    def test_it_keeps_to_its_registers_and_memory(
        self, capability: int, kernel: Kernel, head_dim: int, config: Config
    ) -> None:
        constants = constants_of(config, head_dim, causal=True, even=capability == 90)
        took = compiled_for(capability, FUNCTIONS[kernel], constants, config, "bf16")
        assert took.spilled <= (WIDE_SPILL_BYTES if (kernel, head_dim, config) == WIDE else SPILL_BYTES)
        assert shared_bytes(kernel, config, head_dim, torch.bfloat16) <= took.shared <= ROOM[capability // 10]

    def test_the_forward_keeps_the_tensor_cores_of_sm_90_busy(self) -> None:
        config = space("forward", 128, torch.bfloat16, 9)[0]
        took = compiled_for(90, once.forward, constants_of(config, 128, causal=True, even=True), config, "bf16")
        loop = took.ttgir.split("scf.for", 2)[1]
        products = re.findall(r"warp_group_dot %.*", loop)
        assert len(products) == 2
        assert all("isAsync = true" in product for product in products)
        # One wait: for the scores. The product with v goes on while the next scores are asked for.
        assert loop.partition("scf.yield")[0].count("warp_group_dot_wait") == 1
        assert loop.count("async_tma_copy_global_to_local") >= 2  # the next keys and values come meanwhile
        assert "wgmma.mma_async" in took.ptx
        assert re.search(r"cp\.async\.bulk\.tensor\.3d\.shared::\w+\.global", took.ptx)

    def test_one_pass_adds_in_memory_by_the_copy_engine_of_sm_90(self) -> None:
        config = space("fused", 64, torch.bfloat16, 9)[0]
        took = compiled_for(90, fused.backward_fused, constants_of(config, 64, causal=False, even=True), config, "bf16")
        loop = took.ttgir.partition("async_tma_reduce add")[0].rpartition("scf.for")[2]
        assert len(re.findall(r"warp_group_dot %", loop)) == 5
        assert "cp.reduce.async.bulk.tensor" in took.ptx

    @pytest.mark.parametrize("head_dim", [64, 128])
    @pytest.mark.parametrize("kernel", ["forward", "keys", "queries"])
    def test_float32_compiles(self, kernel: Kernel, head_dim: int) -> None:
        (config,) = space(kernel, head_dim, torch.float32, 9)
        constants = constants_of(config, head_dim, causal=True, even=True)
        took = compiled_for(90, FUNCTIONS[kernel], constants, config, "fp32")
        assert took.spilled <= FP32_SPILL_BYTES
        assert took.shared <= ROOM[8]

    @pytest.mark.parametrize(
        "kernel", [split.row_sums, fused.key_bounds, fused.row_bounds, fused.settle_queries], ids=lambda k: k.__name__
    )
    def test_one_read_of_memory_compiles(self, kernel: Any) -> None:
        constants = {"HEAD_DIM": 128, "BLOCK_Q": ROWS, "BLOCK_K": ROWS}
        assert compiled_for(80, kernel, constants, Config(ROWS, ROWS, 4, 3), "bf16").spilled == 0


def test_there_is_something_to_choose_from() -> None:
    for kernel in KERNELS:
        for head_dim in (64, 128):
            for major in (8, 9, 10, 12):
                configs = space(kernel, head_dim, torch.float16, major)
                assert len(set(configs)) == len(configs) >= 2
                assert all(config.tma == (major == 9) for config in configs)
    assert space("fused", 64, torch.float32, 9) == ()


@pytest.mark.parametrize(("sizes", "said"), [({"head_dim": 32}, "head sizes 64 and 128"), ({"dtype": "fp64"}, "fp64")])
def test_it_says_what_it_cannot_do(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        CONTENDER.build(AttentionCase(**sizes))


def test_the_operator_has_shapes_without_data() -> None:
    with FakeTensorMode():
        q, k = torch.empty(2, 4, 33, 64, dtype=torch.bfloat16), torch.empty(2, 1, 33, 64, dtype=torch.bfloat16)
        out, logsumexp = torch.ops.archbench.triton_flash_forward(q, k, k, True)
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
    assert (logsumexp.shape, logsumexp.dtype) == ((2, 4, 33), torch.float32)
