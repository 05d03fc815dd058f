"""``cuda_tiled`` compiled for GPUs that need not be here: nothing spills, and blocks fit as often as they should."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.kernels import cuda
from archbench.kernels.attention.cuda_tiled import SOURCES, Launch, defines, launches

REGISTERS = 65536  # of a multiprocessor
SHARED_BYTES = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024}  # of a multiprocessor; each block takes 1 KiB more
# Blocks that share a multiprocessor, by kernel and head size.
TOGETHER = {
    ("forward", 64): 2,
    ("forward", 128): 2,
    ("forward_wgmma", 64): 1,
    ("forward_wgmma", 128): 1,
    ("backward_keys", 64): 2,
    ("backward_keys", 128): 1,
    ("backward_queries", 64): 2,
    ("backward_queries", 128): 1,
    ("row_sums", 64): 8,
    ("row_sums", 128): 8,
}
pytestmark = pytest.mark.skipif(
    not any(path.is_file() for path in cuda.candidates()), reason=f"no nvcc: install CUDA or {cuda.PACKAGES}"
)


def compiled(unit: str, target: str, options: tuple[str, ...], cubin: Path) -> str:
    """What the assembler says of the kernels of a file."""
    arguments = [*cuda.FLAGS, f"-arch={target}", f"-I{SOURCES}", *(f"-D{define}" for define in options)]
    command = [cuda.compiler(), *arguments, "-Xptxas", "-v", SOURCES / unit, "-o", cubin]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("target", ["sm_80", "sm_90a"])
def test_every_kernel_keeps_to_its_registers(target: str, head_dim: int, causal: bool, tmp_path: Path) -> None:
    described = launches(head_dim, hopper=target == "sm_90a")
    kernels: dict[str, dict[str, Launch]] = {}
    for each in described.values():
        kernels.setdefault(each.unit, {})[each.kernel] = each
    for unit, expected in kernels.items():
        said = compiled(unit, target, defines(head_dim, causal, torch.bfloat16), tmp_path / "kernel.cubin")
        assert "warning" not in said.lower(), said
        assert "performance loss" not in said.lower(), said  # wgmma that waits for itself
        found = re.findall(
            r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
            r"(\d+) bytes spill loads.*?Used (\d+) registers",
            said,
            re.DOTALL,
        )
        assert {kernel for kernel, *_ in found} == set(expected), said
        for kernel, stack, stores, loads, registers in found:
            assert (stack, stores, loads) == ("0", "0", "0"), said
            how, blocks = expected[kernel], TOGETHER[kernel, head_dim]
            assert blocks * how.threads * -(-int(registers) // 8) * 8 <= REGISTERS, said
            assert blocks * (how.shared_bytes + 1024) <= SHARED_BYTES[target], how


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_softmax_on_hopper_runs_beside_the_product(head_dim: int, tmp_path: Path) -> None:
    triton = pytest.importorskip("triton", reason="Triton brings the disassembler")
    disassembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    if not os.access(disassembler, os.X_OK):
        pytest.skip("this Triton has no disassembler")
    cubin = tmp_path / "kernel.cubin"
    compiled("forward_wgmma.cu", "sm_90a", defines(head_dim, False, torch.bfloat16), cubin)
    told = subprocess.run([disassembler, "-c", cubin], capture_output=True, text=True, check=True).stdout
    steps = re.findall(r"HGMMA|WARPGROUP\.DEPBAR\.LE gsb0, 0x\d|MUFU\.EX2", told)
    waits = [i for i, step in enumerate(steps) if "DEPBAR" in step]
    # First scores; in the loop scores, then output; last output.
    assert [steps[i][-1] for i in waits] == ["0", "1", "0", "0"]
    between = steps[waits[1] + 1 : waits[2]]
    assert between.count("MUFU.EX2") >= 62  # of 64 weights and 2 factors of a thread's rows
    assert "HGMMA" not in between
