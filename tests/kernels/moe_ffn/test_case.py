"""The cases of the mixture of experts: names, sizes, capacities, and where each is measured."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest

from archbench.kernels.moe_ffn import CPU_FLOPS, TRACK, MoeCase
from archbench.names import is_safe_name
from archbench.track import Place

CPU = Place("cpu", cores=4, memory_bytes=32 << 30)
GPU = Place("cuda", cores=16, memory_bytes=80 << 30)
CASE = MoeCase(2, 16, 8, 12, 4)


def test_slugs_say_what_the_case_is() -> None:
    assert CASE.slug == "b2-t16-d8-h12-e4-k2-topk-fp32-fwd"
    switch = MoeCase(1, 5, 8, 12, 4, top_k=1, router="switch", capacity_factor=1.25, skew=1.0, dtype="bf16")
    assert replace(switch, backward=True, threads=2).slug == ("b1-t5-d8-h12-e4-k1-switch-cf1.25-skew1-bf16-fwdbwd-t2")
    cases = TRACK.bench_cases + TRACK.test_cases
    assert all(is_safe_name(case.slug) for case in cases)
    assert len({case.slug for case in cases}) == len(cases)


def test_axes_give_every_size_its_full_name() -> None:
    assert MoeCase(2, 5, 8, 12, 4, top_k=1, router="switch", capacity_factor=1.0, threads=1).axes == {
        "tokens": 10,
        "groups": 2,
        "width": 8,
        "hidden": 12,
        "experts": 4,
        "top_k": 1,
        "router": "switch",
        "capacity_factor": 1.0,
        "skew": 0.0,
        "dtype": "fp32",
        "pass": "fwd",
        "threads": 1,
    }
    assert CASE.axes["capacity_factor"] == "dropless"
    assert "threads" not in CASE.axes


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"router": "hash"}, "router 'hash': allowed are topk, gshard, switch, expert_choice"),
        ({"dtype": "fp16"}, "dtype 'fp16': allowed are fp64, fp32, bf16"),
        *(
            ({name: 0}, f"{name} is 0, must be a whole number of at least 1")
            for name in ("groups", "length", "dim", "hidden", "experts")
        ),
        ({"top_k": 0}, "top_k is 0, must be a whole number of at least 1"),
        ({"top_k": -1}, "top_k is -1, must be a whole number of at least 1"),
        ({"top_k": 5}, "top_k is 5, more than the 4 experts"),
        ({"experts": 1, "router": "gshard"}, "top_k is 2, more than the 1 experts"),
        ({"router": "switch"}, "top_k is 2, switch routing has 1"),
        ({"router": "gshard", "top_k": 1}, "top_k is 1, gshard routing has 2"),
        *(
            ({"router": "gshard", "capacity_factor": factor}, "capacity_factor is .*, must be positive and finite")
            for factor in (0.0, -1.0, math.inf, math.nan)
        ),
        ({"capacity_factor": 1.0}, r"capacity_factor is 1.0: topk routing is dropless, leave it None"),
        ({"router": "expert_choice"}, "capacity_factor is None: expert choice needs one"),
        *(({"skew": skew}, "skew is .*, must be from 0 to 1000") for skew in (math.inf, -1.0, math.nan, 1e300)),
        ({"skew": 1.0, "experts": 9}, "skew is 1.0: tokens of 8 numbers cannot lean to 9 experts"),
        *(({"length": size}, "length is .*, must be a whole number") for size in (math.nan, math.inf, 2.5, "2", True)),
        ({"top_k": math.nan}, "top_k is nan, must be a whole number"),
        *(({"threads": threads}, "threads is .*, must be a whole number") for threads in (0, -1, math.nan, "2")),
    ],
)
def test_sizes_that_make_no_sense_are_refused_by_name(sizes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(CASE, **sizes)


def test_a_capacity_is_rounded_up_from_the_exact_share() -> None:
    """1.1 * 50 / 5 is 11; in binary it comes out a little above, and rounding up would give twelve."""
    assert MoeCase(1, 50, 1, 1, 5, top_k=1, router="switch", capacity_factor=1.1).capacity == 11
    for tenths in range(1, 31):
        for length in (1, 7, 50, 90, 100, 256):
            for experts in (1, 3, 5, 8, 64):
                case = MoeCase(1, length, 1, 1, experts, top_k=1, router="switch", capacity_factor=tenths / 10)
                assert case.capacity == min(length, math.ceil(Fraction(tenths, 10) * length / experts))


@pytest.mark.parametrize("factor", [1e-300, 1e-9, 1e300])
def test_a_capacity_is_at_least_one_and_at_most_the_group(factor: float) -> None:
    case = MoeCase(1, 9, 1, 1, 3, router="gshard", capacity_factor=factor)
    assert case.capacity == (1 if factor < 1 else 9)


def test_assignments_are_known_where_nobody_can_be_dropped() -> None:
    assert CASE.assignments == 64
    assert MoeCase(2, 16, 8, 12, 4, top_k=1, router="switch").assignments == 32
    assert MoeCase(2, 16, 8, 12, 4, top_k=1, router="switch", capacity_factor=4.0).assignments == 32
    assert MoeCase(2, 16, 8, 12, 4, top_k=1, router="switch", capacity_factor=3.0).assignments is None
    assert MoeCase(2, 16, 8, 12, 4, router="gshard").assignments is None  # who is drawn depends on the tokens
    assert MoeCase(2, 16, 8, 12, 4, router="expert_choice", capacity_factor=0.6).assignments == 2 * 4 * 5


def test_operations_are_those_of_the_matrix_products() -> None:
    forward = 6 * 8 * 12 * 64 + 2 * 8 * 4 * 32
    assert CASE.flops() == forward
    assert replace(CASE, backward=True).flops() == 3 * forward
    assert replace(CASE, router="gshard").flops() is None


def test_bytes_count_the_weights_of_experts_that_must_be_asked() -> None:
    expert, x = 3 * 8 * 12, 32 * 8
    assert CASE.bytes_moved() == 4 * (2 * x + 4 * expert)
    assert replace(CASE, dtype="bf16").bytes_moved() == 2 * (2 * x + 4 * expert)
    assert replace(CASE, backward=True).bytes_moved() == 4 * (4 * x + 3 * 4 * expert)  # read twice, gradients written
    assert replace(CASE, skew=8.0).bytes_moved() == 4 * (2 * x + 2 * expert)
    few = MoeCase(1, 1, 8, 12, 4, backward=True)
    assert few.bytes_moved() == 4 * (4 * 8 + 2 * 2 * expert + 4 * expert)


def test_where_a_case_is_measured() -> None:
    on_cpu = [case for case in TRACK.bench_cases if TRACK.skip(case, CPU) is None]
    assert on_cpu[0].slug == "b8-t256-d256-h896-e8-k2-topk-fp32-fwd"
    assert len(on_cpu) >= 15
    assert all(TRACK.skip(case, GPU) is None for case in TRACK.bench_cases)
    huge = next(case for case in TRACK.bench_cases if case not in on_cpu)
    assert f"CPU cases have at most {CPU_FLOPS / 1e9:.0f}" in str(TRACK.skip(huge, CPU))
    assert "means nothing on a GPU" in str(TRACK.skip(replace(CASE, threads=2), GPU))
    small = Place("cpu", cores=4, memory_bytes=64 << 20)
    assert "GiB for weights and the check" in str(TRACK.skip(on_cpu[0], small))


def test_the_track_is_listed_without_torch() -> None:
    code = "import sys; from archbench.kernels.moe_ffn import TRACK; print(TRACK.name, 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True).stdout
    assert said.split() == ["moe_ffn", "False"]
