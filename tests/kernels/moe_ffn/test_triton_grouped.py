"""``triton_grouped`` without a GPU: right in the interpreter, and compiled for real GPUs as its speed needs it."""

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

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from archbench.kernels.moe_ffn import TRACK, MoeCase, triton_grouped
from archbench.kernels.moe_ffn import _triton_backward as backward
from archbench.kernels.moe_ffn import _triton_forward as forward
from archbench.kernels.moe_ffn import _triton_tiles as tiles
from archbench.kernels.moe_ffn._routing import Routing
from archbench.kernels.moe_ffn._triton_launch import COLUMNS, Plan
from archbench.kernels.moe_ffn._triton_space import (
    KERNELS,
    Config,
    Kernel,
    rows_of_a_tile,
    shared_bytes,
    space,
)
from archbench.kernels.moe_ffn.triton_grouped import CONTENDER, by_token
from archbench.track import Unavailable

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ROOM = {8: 99 * 1024, 9: 227 * 1024}  # bytes a block may have on sm_86 (sm_80 gives more) and on sm_90
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])
FUNCTIONS: dict[Kernel, Any] = {
    "in": forward.in_product,
    "out": forward.out_product,
    "hidden": backward.hidden_gradient,
    "weights": backward.weight_gradient,
}
NUMBERS = {
    **dict.fromkeys(("bounds_base", "owners_base"), "i32"),
    **dict.fromkeys(("counts_base", "token_base", "slots_base", "ends_base"), "i64"),
    **dict.fromkeys(("weight_base", "slopes_base"), "fp32"),
}


@pytest.mark.skipif(
    TRITON < (3, 7) and NUMPY >= (2, 4), reason="the interpreter of Triton 3.6 does not run with NumPy 2.4 or later"
)
def test_it_is_right_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("triton_interpreted.py"))],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("done\n")
    right = re.findall(r"^right (\S+)", done.stdout, re.MULTILINE)
    assert {case.slug for case in TRACK.test_cases if case.dtype != "fp64"} < set(right)


@dataclass(frozen=True)
class Compiled:
    """What a kernel became."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread that found no register
    shared: int  # bytes of a block
    ttgir: str
    ptx: str

    @property
    def loop(self) -> str:
        """Of the product."""
        return self.ttgir.partition("scf.for")[2].partition("scf.yield")[0]


def compiled_for(
    capability: int, kernel: Any, constants: dict[str, Any], config: Config, dtype: str = "bf16", even: bool = True
) -> Compiled:
    """Compile a kernel for a GPU that need not be here. EVEN means that sizes are multiples of 16."""
    signature, divisible, values = {}, {}, {}
    copied = copied_tiles(kernel, config)
    for i, name in enumerate(kernel.arg_names):
        kind = NUMBERS.get(name, dtype)
        if name in constants:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
        elif name in copied:
            signature[name] = f"tensordesc<{kind}{copied[name]}>"
        elif name.endswith(("_base", "_all")):
            signature[name] = f"*{kind}"
            divisible[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if even and name in ("dim", "hidden", "depth", "wide"):
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


def copied_tiles(kernel: Any, config: Config) -> dict[str, list[int]]:
    """The arguments that are descriptors, and their tiles."""
    if not config.tma:
        return {}
    m, n, k = config.block_m, config.block_n, config.block_k
    return {
        forward.in_product: {"w_all": [2, n, k]},
        forward.out_product: {"rows_all": [m, k], "w_all": [1, k, n]},
        backward.hidden_gradient: {"w_all": [1, n, k]},
    }[kernel]


def constants_of(config: Config, even: bool = True) -> dict[str, Any]:
    blocks = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_K": config.block_k}
    return {
        **blocks,
        "KEEP": True,
        "WEIGHTED": True,
        "EVEN": even,
        "TMA": config.tma,
        "STAYS": config.stays,
        "WIDEN": False,
    }


def cases() -> list[Any]:
    """The first configuration of every kernel, by rows of a tile and GPU."""
    found = []
    for capability, block_m in ((80, 128), (90, 128), (90, 64)):
        for kernel in KERNELS:
            if kernel != "weights" or block_m == 128:
                config = space(kernel, block_m, torch.bfloat16, capability // 10)[0]
                found.append(pytest.param(capability, kernel, config, id=f"sm_{capability}-{kernel}-{block_m}"))
    return found


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.usefixtures("own_cache")
@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton has no NVIDIA tools")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
class TestCompiled:
    @pytest.mark.parametrize(("capability", "kernel", "config"), cases())
    def test_products_run_on_tensor_cores_while_the_next_tiles_come(
        self, capability: int, kernel: Kernel, config: Config
    ) -> None:
        took = compiled_for(capability, FUNCTIONS[kernel], constants_of(config), config)
        assert took.spilled == 0
        assert shared_bytes(kernel, config, torch.bfloat16) <= took.shared <= ROOM[capability // 10]
        assert took.loop.count("async_copy_global_to_local") + took.loop.count("async_tma_copy") == 2
        if capability == 90:
            assert "wgmma.mma_async" in took.ptx
            assert re.search(r"warp_group_dot_wait.*pendings = 1", took.loop)  # a product goes on meanwhile
        else:
            assert "mma.sync.aligned.m16n8k16" in took.ptx

    def test_a_gate_and_its_value_meet_in_one_thread(self) -> None:
        config = space("in", 128, torch.bfloat16, 9)[0]
        took = compiled_for(90, forward.in_product, constants_of(config) | {"KEEP": False}, config)
        after = took.ttgir.rpartition("tt.split")[0].rpartition("scf.yield")[2]
        assert "convert_layout" not in after
        assert took.ttgir.count("convert_layout") == 1  # h, once, on its way to memory

    @pytest.mark.parametrize("kernel", ["in", "out"])
    def test_a_program_that_stays_asks_for_its_next_tile_before_it_writes(self, kernel: Kernel) -> None:
        config = next(one for one in space(kernel, 128, torch.bfloat16, 9) if one.stays)
        took = compiled_for(90, FUNCTIONS[kernel], constants_of(config) | {"KEEP": False}, config)
        assert took.spilled == 0
        assert took.shared <= ROOM[9]
        before, _, after = took.ttgir.rpartition("tt.store")
        loop = before.rpartition("warp_group_dot %")[2]
        assert loop.count("async_copy_global_to_local") + loop.count("async_tma_copy") == 2
        assert after.count("scf.yield") == 1  # one loop over the steps of all tiles

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_float32_compiles(self, kernel: Kernel) -> None:
        (config,) = space(kernel, 64, torch.float32, 9)
        took = compiled_for(90, FUNCTIONS[kernel], constants_of(config), config, "fp32")
        assert took.spilled == 0
        assert took.shared <= ROOM[8]

    @pytest.mark.parametrize("kernel", ["in", "out"])
    def test_sizes_that_are_no_multiples_of_anything_compile(self, kernel: Kernel) -> None:
        config = space(kernel, 64, torch.bfloat16, 8)[0]
        took = compiled_for(80, FUNCTIONS[kernel], constants_of(config, even=False), config, even=False)
        assert took.shared <= ROOM[8]

    def test_the_way_there_and_back_compiles(self) -> None:
        small = Config(128, 128, 64, 4, 3)
        assert compiled_for(80, tiles.schedule, {"EXPERTS": 64, "BLOCK_M": 128}, small).spilled == 0
        took = compiled_for(80, forward.combine, {"BLOCK": COLUMNS}, small)
        assert took.spilled == 0
        assert re.search(r"ld\.global\S*\.v4\.b32", took.ptx)  # 16 bytes a thread


def test_there_is_something_to_choose_from() -> None:
    for kernel in KERNELS:
        for block_m in (64, 128):
            for major in (8, 9, 10, 12):
                configs = space(kernel, block_m, torch.bfloat16, major)
                assert len(set(configs)) == len(configs) >= 2
                assert all(config.tma == (major == 9 and kernel != "weights") for config in configs)
                assert all(shared_bytes(kernel, one, torch.bfloat16) <= ROOM[9 if major == 9 else 8] for one in configs)


@pytest.mark.parametrize(
    ("assignments", "experts", "dtype", "rows"),
    [(16384, 8, "bfloat16", 128), (511, 8, "bfloat16", 64), (512, 8, "bfloat16", 128), (16384, 8, "float32", 64)],
)
def test_a_tile_is_as_high_as_experts_have_rows(assignments: int, experts: int, dtype: str, rows: int) -> None:
    assert rows_of_a_tile(assignments, experts, getattr(torch, dtype)) == rows


def test_rows_are_found_by_token() -> None:
    """Also where a token has no row, or three."""
    zero = torch.zeros(())
    token_A = torch.tensor([0, 3, 0, 1, 0])
    routing = Routing(token_A, torch.ones(5), torch.tensor([2, 3]), zero, zero)
    slots_A, ends_N = by_token(routing, 5)
    assert slots_A.tolist() == [0, 2, 4, 3, 1]
    assert ends_N.tolist() == [3, 4, 4, 5, 5]
    slots_NK = torch.tensor([[1, 2], [0, 3]])
    slots_A, ends_N = by_token(routing._replace(slots_NK=slots_NK), 2)
    assert slots_A.tolist() == [1, 2, 0, 3]
    assert ends_N.tolist() == [2, 4]


def test_it_says_what_it_cannot_do() -> None:
    assert CONTENDER.device == "cuda"
    with pytest.raises(Unavailable, match="no fp64"):
        CONTENDER.build(MoeCase(1, 8, 8, 8, 2, dtype="fp64"))


def test_a_case_asks_the_clock_once_however_many_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many assignments are kept differs from call to call, and a call that is timed must not tune."""
    asked = []

    def decide(kernel: Any, plan: Any, *rest: Any) -> Any:
        asked.append((kernel, len(plan.token_A)))
        return None

    monkeypatch.setattr(triton_grouped, "_decide", decide)
    monkeypatch.setattr(triton_grouped, "_CHOSEN", {})
    for kept in (10, 11, 12):
        rows = torch.zeros(kept, dtype=torch.int64)
        plan = Plan(rows, rows, rows, torch.zeros(2, 5, dtype=torch.int32), rows, 64, asked=16)
        triton_grouped._choose("in", plan, torch.zeros(1), (8, 16), lambda config: None)
    assert asked == [("in", 10)]
