"""``triton_flash`` without a GPU: right in the interpreter, and compiled for real GPUs without spilling registers."""

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
from archbench.kernels.attention import _triton_flash_kernels as kernels
from archbench.kernels.attention.triton_flash import CONTENDER, ROW_SUM_BLOCK, Config, configs
from archbench.track import Unavailable

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_BYTES = 99 * 1024  # what sm_86 and sm_89 give a block; sm_80 and sm_90 give more
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])
# Exact float32 products live in registers, where a few words may find no room; so do those of backward_keys on sm_80
# when Triton 3.6 compiles it.
SPILL_BYTES = {"bf16": 0 if TRITON >= (3, 7) else 64, "fp32": 64}


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
    assert len(errors) == 8
    assert max(errors) < 0.01


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread that found no register
    shared: int  # bytes of a block


def compiled_for(
    capability: int, kernel: Any, config: Config, constants: dict[str, Any], dtype: str, even: bool, cubin: Path
) -> Resources:
    """Compile a kernel for a GPU that need not be here. ``even``: the length is a multiple of every block."""
    constants = {"BLOCK_Q": config.block_q, "BLOCK_K": config.block_k, "WIDEN": False, "EVEN": even, **constants}
    signature, divisible, values = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
        elif name.endswith("_base"):
            signature[name] = "*fp32" if name in ("logsumexp_base", "row_sum_base") else f"*{dtype}"
            divisible[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name.startswith("scale") else "i32"
            if name == "length" and even:
                divisible[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, values, divisible),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages},
    )
    cubin.write_bytes(compiled.asm["cubin"])
    told = subprocess.run(
        [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    assert found, told
    return Resources(int(found[1]), int(found[2]) + int(found[3]), compiled.metadata.shared)


@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton has no NVIDIA tools")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_every_kernel_compiles_and_keeps_to_its_registers(
    dtype: str, head_dim: int, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    chosen = configs(head_dim, {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    launches = (
        (kernels.forward, chosen.forward),
        (kernels.backward_keys, chosen.keys),
        (kernels.backward_queries, chosen.queries),
        (kernels.row_sums, Config(ROW_SUM_BLOCK, ROW_SUM_BLOCK, 4, 3)),
    )
    for causal, even in ((True, True), (False, True), (True, False)) if dtype == "bf16" else ((True, True),):
        for kernel, config in launches:
            constants = {"HEAD_DIM": head_dim, "CAUSAL": causal}
            took = compiled_for(capability, kernel, config, constants, dtype, even, tmp_path / "kernel.cubin")
            label = f"{kernel.__name__}, causal={causal}, even={even}: {took}"
            assert took.registers <= 255, label
            assert took.spilled <= SPILL_BYTES[dtype], label
            assert took.shared <= SHARED_BYTES, label


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
