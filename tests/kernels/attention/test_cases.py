"""The cases of the attention track: names, sizes, operations, bytes, and where each is measured."""

from __future__ import annotations

import subprocess
import sys

import pytest

from archbench.kernels.attention import TRACK, AttentionCase
from archbench.names import is_safe_name
from archbench.track import Place

CPU = Place("cpu", cores=4, memory_bytes=8 << 30)
GPU = Place("cuda", cores=16, memory_bytes=80 << 30)


def test_slugs_say_what_the_case_is() -> None:
    plain = AttentionCase(length=1024, causal=True, dtype="bf16")
    grouped = AttentionCase(kv_heads=2, head_dim=128, causal=True, dtype="bf16", backward=True)
    assert plain.slug == "b1-h8-len1024-d64-causal-bf16-fwd"
    assert grouped.slug == "b1-h8-kv2-len1024-d128-causal-bf16-fwdbwd"
    assert AttentionCase(threads=1).slug == "b1-h8-len1024-d64-fp32-fwd-t1"
    assert AttentionCase(kv_heads=8).slug == AttentionCase().slug, "as many KV heads as heads is the plain case"
    assert all(is_safe_name(case.slug) for case in TRACK.bench_cases + TRACK.test_cases)


def test_axes_give_every_size_its_full_name() -> None:
    case = AttentionCase(heads=8, kv_heads=2, length=100, causal=True, backward=True, threads=2)
    assert case.axes == {
        "batch": 1,
        "heads": 8,
        "kv_heads": 2,
        "length": 100,
        "head_dim": 64,
        "causal": True,
        "dtype": "fp32",
        "pass": "fwdbwd",
        "threads": 2,
    }
    assert "threads" not in AttentionCase().axes
    assert AttentionCase().axes["kv_heads"] == 8


def test_flops_count_the_products_that_nobody_can_avoid() -> None:
    full = AttentionCase(batch=2, heads=3, length=10, head_dim=4)
    causal = AttentionCase(batch=2, heads=3, length=10, head_dim=4, causal=True)
    assert full.flops() == 2 * (2 * 3 * 10 * 10 * 4) * 2
    assert causal.flops() == 2 * (2 * 3 * 55 * 4) * 2
    assert AttentionCase(batch=2, heads=3, length=10, head_dim=4, backward=True).flops() == 3 * full.flops()
    assert AttentionCase(batch=2, heads=3, kv_heads=1, length=10, head_dim=4).flops() == full.flops()


def test_bytes_count_every_input_and_output_once() -> None:
    case = AttentionCase(heads=8, kv_heads=2, length=10, head_dim=4, dtype="bf16")
    q, kv = 8 * 10 * 4 * 2, 2 * 10 * 4 * 2
    assert case.bytes_moved() == q + kv + kv + q
    backward = AttentionCase(heads=8, kv_heads=2, length=10, head_dim=4, dtype="bf16", backward=True)
    assert backward.bytes_moved() == (q + kv + kv + q) + q + (q + kv + kv)


@pytest.mark.parametrize(
    ("sizes", "said"), [({"dtype": "fp8"}, "fp8"), ({"heads": 8, "kv_heads": 3}, "8 heads cannot share 3")]
)
def test_impossible_cases_are_refused(sizes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        AttentionCase(**sizes)  # type: ignore[arg-type]


def test_each_place_measures_its_own_cases() -> None:
    on_cpu = [case for case in TRACK.bench_cases if TRACK.skip(case, CPU) is None]
    on_gpu = [case for case in TRACK.bench_cases if TRACK.skip(case, GPU) is None]
    assert {case.length for case in on_cpu} == {128, 512, 1024, 2048, 4096}
    assert {case.dtype for case in on_cpu} == {"fp32", "bf16"}
    assert len(on_cpu) == 11
    assert not any(case.threads for case in on_gpu)
    assert len(on_gpu) == len(TRACK.bench_cases) - 1
    assert max(case.length for case in on_gpu) == 32768


def test_skips_give_a_reason() -> None:
    large = AttentionCase(batch=4, length=4096, dtype="bf16")
    assert "a GPU's work" in (TRACK.skip(large, CPU) or "")
    assert "thread count" in (TRACK.skip(AttentionCase(threads=1), GPU) or "")
    assert "GiB" in (TRACK.skip(large, Place("cuda", cores=4, memory_bytes=2 << 30)) or "")


def test_importing_the_track_imports_no_torch() -> None:
    code = "import sys, archbench.kernels.attention; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
