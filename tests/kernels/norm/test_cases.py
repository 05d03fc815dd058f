"""The cases of the norm track: names, sizes, bytes, and where each is measured."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from archbench.kernels.norm import TRACK, NormCase
from archbench.names import is_safe_name
from archbench.track import Place

CPU = Place("cpu", cores=4, memory_bytes=8 << 30)
GPU = Place("cuda", cores=16, memory_bytes=80 << 30)


def test_slugs_say_what_the_case_is() -> None:
    image = NormCase("batch_train", (32, 64, 56, 50), channels_last=True, backward=True)
    group = NormCase("group", (4, 32, 8, 8), groups=8, dtype="bf16")
    assert image.slug == "batch_train-n32-c64-h56-w50-nhwc-fp32-fwdbwd"
    assert group.slug == "group-g8-n4-c32-h8-w8-bf16-fwd"
    assert NormCase("rms", (8, 512, 768), threads=1).slug == "rms-b8-t512-d768-fp32-fwd-t1"
    assert all(is_safe_name(case.slug) for case in TRACK.bench_cases + TRACK.test_cases)


def test_axes_give_every_size_its_full_name() -> None:
    image = NormCase("group", (4, 32, 8, 6), groups=8, dtype="bf16", threads=2)
    sizes = {"batch": 4, "channels": 32, "height": 8, "width": 6, "groups": 8}
    assert image.axes == {
        "kind": "group",
        **sizes,
        "layout": "contiguous",
        "dtype": "bf16",
        "pass": "fwd",
        "threads": 2,
    }
    tokens = NormCase("layer", (2, 3, 5), backward=True)
    assert tokens.axes == {"kind": "layer", "batch": 2, "tokens": 3, "features": 5, "dtype": "fp32", "pass": "fwdbwd"}


def test_bytes_count_the_tensors_nobody_can_avoid() -> None:
    case = NormCase("layer", (2, 3, 5), dtype="bf16")
    assert case.bytes_moved() == 2 * (2 * 3 * 5) * 2
    assert NormCase("layer", (2, 3, 5), dtype="bf16", backward=True).bytes_moved() == 5 * (2 * 3 * 5) * 2
    assert case.flops() is None


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"kind": "batch"}, "'batch': allowed are batch_train, batch_eval"),
        ({"dtype": "fp16"}, "'fp16': allowed are fp64, fp32, bf16"),
        ({"shape": (2, 3, 4, 5)}, r"layer takes a shape \(b, t, d\)"),
        ({"kind": "instance"}, r"instance takes a shape \(n, c, h, w\)"),
        ({"groups": 2}, "groups=2 with kind layer"),
        ({"kind": "group", "shape": (1, 4, 2, 2)}, "groups=None with kind group"),
        ({"kind": "group", "shape": (1, 4, 2, 2), "groups": 3}, "4 channels cannot be split into 3"),
        ({"channels_last": True}, "a layout of images"),
    ],
)
def test_impossible_cases_are_refused(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        NormCase(**({"kind": "layer", "shape": (2, 3, 5)} | sizes))


def test_each_place_measures_its_own_cases() -> None:
    on_cpu = [case for case in TRACK.bench_cases if TRACK.skip(case, CPU) is None]
    on_gpu = [case for case in TRACK.bench_cases if TRACK.skip(case, GPU) is None]
    assert len(on_cpu) == 9
    assert on_cpu[0].slug == "batch_train-n32-c64-h56-w56-fp32-fwd"
    assert {case.kind for case in on_cpu} == {"batch_train", "layer", "group", "rms", "instance"}
    assert {case.kind for case in on_gpu} >= {"batch_train", "batch_eval", "layer", "group", "rms", "instance"}
    assert len(on_gpu) == len(TRACK.bench_cases)


def test_skips_give_a_reason() -> None:
    large = NormCase("layer", (16, 1024, 1024))
    assert "a GPU's work" in (TRACK.skip(large, CPU) or "")
    assert "thread count" in (TRACK.skip(NormCase("layer", (1, 2, 3), threads=1), GPU) or "")
    assert "GiB" in (TRACK.skip(large, Place("cuda", cores=4, memory_bytes=1 << 30)) or "")


def test_importing_the_track_imports_no_torch() -> None:
    code = "import sys, archbench.kernels.norm; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
