"""The cases of the int4_linear track: names, sizes, bytes, and where each is measured."""

from __future__ import annotations

import pytest

from archbench.kernels.int4_linear import TRACK, Int4Case
from archbench.names import is_safe_name
from archbench.track import Place


def test_slugs_and_axes_say_what_the_case_is() -> None:
    case = Int4Case(1, 4096, 11008, group=128, layers=6, threads=1)
    assert case.slug == "m1-k4096-n11008-g128-l6-w4a8-t1"
    sizes = {"tokens": 1, "inputs": 4096, "outputs": 11008, "group": 128, "layers": 6}
    assert case.axes == sizes | {"kind": "w4a8", "threads": 1}
    assert Int4Case(2, 64, 3, kind="w4a16").slug == "m2-k64-n3-g32-w4a16"
    assert all(is_safe_name(case.slug) for case in TRACK.bench_cases + TRACK.test_cases)


def test_bytes_are_codes_scales_and_what_goes_in_and_out() -> None:
    case = Int4Case(3, 64, 10, layers=2)
    codes, scales = 2 * 10 * 64 // 2, 2 * 10 * 2 * 2
    assert case.weight_bytes == codes + scales
    assert case.bytes_moved() == codes + scales + 4 * 3 * 64 + 4 * 2 * 3 * 10
    assert Int4Case(3, 64, 10, kind="w4a16", layers=2).bytes_moved() == codes + scales + 2 * 3 * 64 + 2 * 2 * 3 * 10
    assert case.flops() == 2 * (2 * 3 * 64 * 10)


def test_a_case_meets_the_ceiling_of_what_it_multiplies() -> None:
    assert [Int4Case(1, 32, 16, kind=kind).dtype for kind in ("w4a32", "w4a16", "w4a8")] == ["fp32", "bf16", "int8"]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"kind": "w4a4"}, "'w4a4': allowed are w4a32, w4a16, w4a8"),
        ({"inputs": 48}, "groups of 32: must be even and divide the 48 inputs"),
        ({"group": 0}, "groups of 0"),
        ({"inputs": 33, "group": 11}, "groups of 11: must be even"),
        ({"tokens": 0}, "at least one of each"),
        ({"layers": 0}, "at least one of each"),
    ],
)
def test_a_case_that_makes_no_sense_is_refused(sizes: dict[str, int | str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Int4Case(**({"tokens": 1, "inputs": 64, "outputs": 8} | sizes))  # type: ignore[arg-type]


def test_matrices_that_do_not_fit_are_not_measured() -> None:
    large = Int4Case(1, 4096, 4096, layers=64)  # 4 GiB in float32
    small = Place("cpu", cores=4, memory_bytes=4 << 30)
    reason = TRACK.skip(large, small)
    assert reason is not None
    assert "GiB for the matrices; there are 4.0" in reason
    assert TRACK.skip(large, Place("cpu", cores=4, memory_bytes=64 << 30)) is None
    threads = TRACK.skip(Int4Case(1, 32, 16, threads=1), Place("cuda", cores=4, memory_bytes=4 << 30))
    assert threads == "a thread count means nothing on a GPU"
