"""``triton_w4a16`` without a GPU: right in the interpreter, and compiled for real GPUs as its speed needs it."""

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

from archbench.kernels.int4_linear import TRACK, Int4Case
from archbench.kernels.int4_linear._triton_token import merge, one_token
from archbench.kernels.int4_linear._triton_tokens import many_tokens
from archbench.kernels.int4_linear._weights import Quantised
from archbench.kernels.int4_linear.triton_w4a16 import (
    BLOCKS,
    CONTENDER,
    MERGED,
    ROWS,
    chunks,
    parts_of,
    tiles,
    words,
)
from archbench.track import Unavailable

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_BYTES = 99 * 1024  # what sm_86 and sm_89 give a block; sm_80 and sm_90 give more
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])
TYPES = {"words_base": "*i32", "bytes_base": "*u8", "parts_base": "*fp32"}


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
    assert {case.slug for case in TRACK.test_cases if case.kind == "w4a16"} < set(right)


@dataclass(frozen=True)
class Compiled:
    """What a kernel became."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread that found no register
    shared: int  # bytes of a block
    ptx: str


def compiled_for(
    capability: int, kernel: Any, constants: dict[str, Any], options: dict[str, int], cubin: Path
) -> Compiled:
    """Compile a kernel for a GPU that need not be here. What is measured divides by 16."""
    signature, divisible, values = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
        else:
            kind = "*i32" if kernel is one_token and name == "x_base" else TYPES.get(name, "*bf16")
            signature[name] = kind if name.endswith("_base") else "i32"
            if name.endswith("_base") or name in ("inputs", "outputs", "group"):
                divisible[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, values, divisible), target=GPUTarget("cuda", capability, 32), options=options
    )
    cubin.write_bytes(compiled.asm["cubin"])
    told = subprocess.run(
        [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    assert found, told
    return Compiled(int(found[1]), int(found[2]) + int(found[3]), compiled.metadata.shared, compiled.asm["ptx"])


@pytest.fixture
def cubin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "kernel.cubin"


@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton has no NVIDIA tools")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
class TestCompiled:
    @pytest.mark.parametrize("capability", [80, 90])
    def test_one_token_reads_16_bytes_a_thread_and_spills_nothing(self, capability: int, cubin: Path) -> None:
        took = compiled_for(capability, one_token, {"ROWS": ROWS, "BLOCKS": BLOCKS}, {"num_warps": 1}, cubin)
        assert took.spilled == 0
        assert took.registers <= 128  # sixteen warps at once
        wide = re.findall(r"ld\.global\S*\.v4\.[bu]32", took.ptx)
        assert len(wide) == ROWS + 4  # of every row a load, of x four
        loop = took.ptx.rpartition("ld.global")[0]
        assert "shfl" not in loop  # no thread needs another's numbers before the end
        assert "st.shared" not in loop

    @pytest.mark.parametrize(("capability", "tokens"), [(80, 197), (90, 2), (90, 64), (90, 197)])
    def test_many_tokens_multiply_on_tensor_cores_and_spill_nothing(
        self, capability: int, tokens: int, cubin: Path
    ) -> None:
        cut = tiles(tokens)
        constants = {"PARTS": 1, "BLOCK_M": cut.block_m, "BLOCK_N": cut.block_n, "WIDEN": False}
        options = {"num_warps": cut.num_warps, "num_stages": cut.num_stages}
        took = compiled_for(capability, many_tokens, constants, options, cubin)
        assert took.spilled == 0
        assert took.registers <= 65536 // (32 * cut.num_warps)
        assert took.shared <= SHARED_BYTES
        assert ("wgmma.mma_async" if capability == 90 else "mma.sync.aligned.m16n8k16") in took.ptx
        assert "cp.async" in took.ptx  # the next weights and x come meanwhile

    def test_the_sum_of_parts_compiles(self, cubin: Path) -> None:
        took = compiled_for(90, merge, {"PARTS": 8, "BLOCK": MERGED}, {"num_warps": 4}, cubin)
        assert took.spilled == 0


def test_packing_puts_every_column_where_the_kernels_look() -> None:
    codes = np.random.default_rng(1).integers(0, 16, (3, 96), dtype=np.uint8)
    matrix = Quantised(codes, np.ones((3, 3), np.float32))
    packed, tiled = words(matrix), chunks(matrix)
    assert packed.shape == (3, 3, 4)
    assert tiled.shape == (2, 3, 32)
    for column in range(96):
        block, rest = divmod(column, 32)
        p, j, odd = rest // 8, rest % 8 // 2, rest % 2
        assert ((packed[:, block, j] >> (8 * p + 4 * odd) & 15) == codes[:, column]).all()
        chunk, half, i = column // 64, column % 64 // 32, column % 32
        assert ((tiled[chunk, :, i] >> 4 * half & 15) == codes[:, column]).all()
    assert (tiled[1] >> 4 == 8).all()  # where K ends in half a chunk: zeros


@pytest.mark.parametrize(("wanted", "steps"), [(0, 5), (1, 1), (4, 17), (16, 16), (7, 12), (100, 3)])
def test_parts_cover_k_and_none_is_empty(wanted: int, steps: int) -> None:
    parts, share = parts_of(wanted, steps)
    assert 1 <= parts <= max(1, wanted)
    assert (parts - 1) * share < steps <= parts * share


@pytest.mark.parametrize(
    ("sizes", "said"),
    [({"kind": "w4a8"}, "w4a16 only"), ({"kind": "w4a16", "group": 16}, "groups of multiples of 32 only, not 16")],
)
def test_it_says_what_it_cannot_do(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        CONTENDER.build(Int4Case(1, 64, 8, **sizes))
