"""Numbers for people."""

from __future__ import annotations

import pytest

from archbench.formatting import quantity, ratio, seconds, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.5, "0.500"), (2, "2.00"), (9.999, "10.0"), (12.34, "12.3"), (123.4, "123"), (1234, "1230"),
        (0.01234, "0.0123"), (0.0009999, "1.00e-03"), (1.5e7, "1.50e+07"), (-0.25, "-0.250"),
    ],
)  # fmt: skip
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.5, "2.50 s"),
        (1.23e-3, "1.23 ms"),
        (4.5e-5, "45.0 µs"),
        (2.7e-8, "27.0 ns"),
        (0.9999, "1.00 s"),
        (1e-12, "0.00100 ns"),
    ],
)
def test_times_take_the_unit_that_reads_best(value: float, text: str) -> None:
    assert seconds(value) == text


def test_quantities_and_ratios() -> None:
    assert quantity(1536, "B") == "1.50 KiB"
    assert quantity(3.35e12, "B/s") == "3.35 TB/s"
    assert quantity(0.25, "J") == "0.250 J"
    assert quantity(1e-7, "ratio") == "1.00e-07"
    assert ratio(4.1, (4.05, 4.16)) == "4.10× (4.05-4.16)"
    assert ratio(2) == "2.00×"
