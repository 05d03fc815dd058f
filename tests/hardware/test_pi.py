"""A Raspberry Pi's firmware: its answers in every format it has given them in, and what held it back when."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

import raspberry
from archbench.hardware import pi

REAL_VCGENCMD = pi.vcgencmd  # before this room's tests take it away


def test_the_firmware_is_asked_and_may_stay_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("vcgencmd")

    def hangs(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("vcgencmd", 5)

    def ends(status: int, output: str) -> Callable[..., Any]:
        return lambda command, **_: subprocess.CompletedProcess(command, status, stdout=f"{output}\n")

    for run, expected in (
        (absent, ""),
        (hangs, ""),
        (ends(0, "throttled=0x0"), "throttled=0x0"),
        (ends(255, raspberry.NO_DEVICE), ""),
        (ends(255, raspberry.PMIC_ABSENT), ""),
    ):
        monkeypatch.setattr(subprocess, "run", run)
        assert REAL_VCGENCMD("get_throttled") == expected


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ("well", ""),
        ("weak supply now", "under-voltage, throttled"),
        ("weak supply once", ""),
        ("soft limit now", "soft temperature limit"),
        ("hot now", "soft temperature limit"),
        ("hot once", ""),
    ],
)
def test_only_the_low_bits_are_now(seen: str, words: str) -> None:
    assert pi.in_words(pi.bits_of(raspberry.THROTTLED[seen]) or 0) == words


@pytest.mark.parametrize("output", ["", "garbage", "throttled=", raspberry.NO_DEVICE, 'error=1 error_msg="x"'])
def test_no_answer_is_not_zero(output: str) -> None:
    assert pi.bits_of(output) is None


@pytest.mark.parametrize(
    ("before", "after", "between", "expected"),
    [
        ("well", "well", 0, ""),
        ("weak supply once", "weak supply once", 0, ""),  # since boot, but not in between
        ("weak supply now", "weak supply once", 0, "under-voltage, throttled"),  # as it began
        ("well", "hot once", 0, "frequency capped, throttled, soft temperature limit"),  # noted meanwhile
        ("weak supply once", "hot now", 0, "frequency capped, soft temperature limit"),  # "throttled" was set before
        ("hot once", "hot once", 0xE0008, "soft temperature limit"),  # only who looked knows
    ],
)
def test_what_held_it_back_belongs_to_the_measurement_it_fell_into(
    before: str, after: str, between: int, expected: str
) -> None:
    first, last = (pi.bits_of(raspberry.THROTTLED[name]) for name in (before, after))
    assert first is not None
    assert last is not None
    assert pi.in_words(pi.held_back(first, last, between)) == expected


def firmware_says(monkeypatch: pytest.MonkeyPatch, answers: Iterable[str]) -> threading.Event:
    """Let the firmware give these answers, the last one for ever; the event is set once that is reached."""
    waiting, last = list(answers), threading.Event()

    def answer(*_: str) -> str:
        if len(waiting) > 1:
            return waiting.pop(0)
        last.set()
        return waiting[0]

    monkeypatch.setattr(pi, "vcgencmd", answer)
    return last


def test_a_second_slow_down_since_boot_is_seen_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    once, now = raspberry.THROTTLED["hot once"], raspberry.THROTTLED["hot now"]
    last = firmware_says(monkeypatch, [once, now, once])
    throttle = pi.Throttle(every_s=0.001)
    throttle.start()
    assert last.wait(30)
    assert throttle.stop() == "soft temperature limit"


def test_an_answer_that_fails_in_between_is_no_slow_down(monkeypatch: pytest.MonkeyPatch) -> None:
    last = firmware_says(monkeypatch, [raspberry.THROTTLED["well"], ""])
    throttle = pi.Throttle(every_s=0.001)
    throttle.start()
    assert last.wait(30)
    assert throttle.stop() == ""


def test_no_thread_runs_where_there_is_no_firmware() -> None:
    before = threading.active_count()
    throttle = pi.Throttle(every_s=0.001)
    throttle.start()
    assert threading.active_count() == before
    assert throttle.stop() == ""


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (raspberry.CLOCK_ARM["raspberry-pi-5"], 2400023808.0),
        (raspberry.CLOCK_ARM["raspberry-pi-4"], 1800457088.0),
        ("frequency(0)=0", None),  # a clock this model does not have
        ("", None),
    ],
)
def test_the_clock_is_the_firmwares(firmware: dict[str, str], output: str, expected: float | None) -> None:
    firmware["measure_clock arm"] = output
    assert pi.clock_hz() == expected


def test_rails_are_paired_by_name_and_need_both(firmware: dict[str, str]) -> None:
    rails = pi.rails_w(raspberry.PMIC)
    assert len(rails) == 12
    assert rails["VDD_CORE"] == pytest.approx(10.87674 * 0.8974594)
    assert rails["HDMI"] == pytest.approx(0.0136752 * 5.07056)
    assert not {"EXT5V", "BATT"} & set(rails)  # a voltage alone is no power
    firmware["pmic_read_adc"] = raspberry.PMIC
    assert pi.power_w() == pytest.approx(raspberry.PMIC_W, abs=0.01)


def test_the_plain_format_is_read_too() -> None:
    assert pi.rails_w(raspberry.PMIC_PLAIN) == pytest.approx({"3V3_SYS": 0.019 * 3.3063, "VDD_CORE": 0.333 * 0.875})


def test_a_line_that_was_cut_costs_its_rail_only() -> None:
    broken = raspberry.PMIC.replace("volt(15)=0.89745940V", "volt(15)=0..8974V")
    assert set(pi.rails_w(raspberry.PMIC)) - set(pi.rails_w(broken)) == {"VDD_CORE"}


@pytest.mark.parametrize("output", ["", raspberry.PMIC_ABSENT, "EXT5V_V volt(24)=5.06788000V"])
def test_without_rails_there_is_no_power(firmware: dict[str, str], output: str) -> None:
    firmware["pmic_read_adc"] = output
    assert pi.power_w() is None
