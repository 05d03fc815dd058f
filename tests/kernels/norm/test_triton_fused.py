"""``triton_fused`` without a GPU: right in the interpreter, and compiled for real GPUs without spilling registers."""

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

from archbench.kernels.norm import TRACK, NormCase
from archbench.kernels.norm import _triton_images as images
from archbench.kernels.norm import _triton_rows as rows
from archbench.kernels.norm import _triton_sets as sets
from archbench.kernels.norm._workload import TORCH_DTYPE
from archbench.kernels.norm.triton_fused import (
    CONTENDER,
    MAX_WIDTH,
    SMALL,
    image_tiles,
    row_tiles,
    seen,
    set_tiles,
)
from archbench.track import Unavailable

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
SHARED_BYTES = 99 * 1024  # what sm_86 and sm_89 give a block; sm_80 and sm_90 give more
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])


@pytest.mark.slow
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
    assert done.stdout.count("SUCCESS") == 24, done.stdout  # four checks of both operators, for three kinds
    right = re.findall(r"^right (\S+)", done.stdout, re.MULTILINE)
    assert {case.slug for case in TRACK.test_cases if case.dtype != "fp64"} < set(right)


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes."""

    registers: int  # of a thread
    spilled: int  # bytes of a thread that found no register
    shared: int  # bytes of a block


IN_CASE_DTYPE = ("x", "y", "dx", "dy", "weight", "bias", "dweight", "dbias", "old", "new")
GIVEN_TOO = ("mean", "spread")  # these where the statistics were given


def compiled_for(
    capability: int, kernel: Any, options: dict[str, int], flags: dict[str, Any], dtype: str, cubin: Path
) -> Resources:
    """Compile a kernel for a GPU that need not be here. The sizes of what is measured divide by 16."""
    constants = {name: options[name] for name in ("BLOCK_R", "BLOCK_P")} | flags
    signature, divisible, values = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        stem = name.removesuffix("_base")
        if name in constants:
            signature[name] = "constexpr"
            values[(i,)] = constants[name]
        elif stem != name:
            own = stem in IN_CASE_DTYPE + GIVEN_TOO * flags.get("GIVEN", False) or stem.startswith(("old", "new"))
            signature[name] = f"*{dtype}" if own else "*fp32"
            divisible[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in ("eps", "momentum") else "i32"
            if name in ("width", "channels", "area", "chunk"):
                divisible[(i,)] = [["tt.divisibility", 16]]
    compiled = triton.compile(
        ASTSource(kernel, signature, values, divisible),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": options["num_warps"]},
    )
    cubin.write_bytes(compiled.asm["cubin"])
    told = subprocess.run(
        [str(CUOBJDUMP), "--dump-resource-usage", str(cubin)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", told)
    assert found, told
    return Resources(int(found[1]), int(found[2]) + int(found[3]), compiled.metadata.shared)


def row_launches() -> list[tuple[Any, dict[str, int], dict[str, Any]]]:
    tiles = [row_tiles(width) for width in (100, 4096, MAX_WIDTH)]
    both = [{"CENTRED": True}, {"CENTRED": False}]
    walks = [
        (kernel, own.options, flags)
        for kernel in (rows.row_forward, rows.row_backward)
        for own in tiles
        for flags in both
    ]
    return walks + [(rows.channel_sums, SMALL, flags) for flags in both]


def image_launches() -> list[tuple[Any, dict[str, int], dict[str, Any]]]:
    tiles = (
        (image_tiles(256, 3136, False), False),
        (image_tiles(1024, 196, False), False),
        (image_tiles(256, 3136, True), True),
    )
    found: list[tuple[Any, dict[str, int], dict[str, Any]]] = []
    for own, last in tiles:
        found.append((images.moments, own.options, {"LAST": last}))
        for kernel in (images.normalize, images.gradient_sums, images.input_gradient):
            found += [(kernel, own.options, {"LAST": last, "GIVEN": given}) for given in (False, True)]
    found += [(images.merge_moments, SMALL, {"RUNNING": running}) for running in (False, True)]
    return [*found, (images.set_means, SMALL, {})]


def set_launches() -> list[tuple[Any, dict[str, int], dict[str, Any]]]:
    tiles = [set_tiles(share, area) for share, area in ((1, 3136), (8, 3136), (8, 49))]
    return [(kernel, own.options, {}) for kernel in (sets.set_forward, sets.set_backward) for own in tiles]


@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton has no NVIDIA tools")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels are not compiled")
@pytest.mark.parametrize("launches", [row_launches, image_launches, set_launches])
@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 80), ("bf16", 90), ("fp32", 80), ("fp32", 90)])
def test_every_kernel_compiles_and_keeps_to_its_registers(
    dtype: str, launches: Any, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    for kernel, options, flags in launches():
        took = compiled_for(capability, kernel, options, flags, dtype, tmp_path / "kernel.cubin")
        label = f"{kernel.__name__}, {options}, {flags}: {took}"
        assert took.registers <= 65536 // (32 * options["num_warps"]), label
        assert took.spilled == 0, label
        assert took.shared <= SHARED_BYTES, label


def test_one_program_owns_a_set_where_that_saves_a_pass() -> None:
    large = [case for case in TRACK.bench_cases if case.kind in ("instance", "group") and case.elements > 1 << 25]
    for case in large:
        assert seen(
            torch.empty(case.shape, dtype=TORCH_DTYPE[case.dtype], device="meta"), case.kind, case.groups or 1
        ).owned
    one_image = torch.empty(1, 256, 512, 512, device="meta")
    assert large
    assert not seen(one_image, "group", 32).owned, "32 programs would leave most of a GPU idle"
    assert not seen(one_image, "batch_train", 1).owned


@pytest.mark.parametrize(
    ("case", "said"),
    [(NormCase("rms", (1, 1, 8), dtype="fp64"), "no fp64"), (NormCase("layer", (1, 1, 8193)), "at most 8192 features")],
)
def test_it_says_what_it_cannot_do(case: NormCase, said: str) -> None:
    with pytest.raises(Unavailable, match=said):
        CONTENDER.build(case)


def test_the_operators_have_shapes_and_layouts_without_data() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 16, 6, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        weight = torch.empty(16, dtype=torch.bfloat16)
        operators = torch.ops.archbench
        y, mean, rstd, new_mean, _ = operators.triton_norm_forward(x, weight, weight, weight, weight, "batch_train", 1)
        dx, dweight, dbias = operators.triton_norm_backward(x, weight, mean, rstd, x, "batch_train", 1)
        grouped = operators.triton_norm_forward(x, weight, weight, None, None, "group", 4)
    for like_x in (y, dx, grouped[0]):
        assert (like_x.shape, like_x.dtype, like_x.stride()) == (x.shape, x.dtype, x.stride())
    for of_channels in (new_mean, dweight, dbias):
        assert (of_channels.shape, of_channels.dtype) == ((16,), torch.bfloat16)
    assert (mean.shape, mean.dtype, rstd.shape) == ((16,), torch.float32, (16,))
    assert [tensor.numel() for tensor in grouped[1:]] == [8, 8, 0, 0]
