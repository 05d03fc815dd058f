"""Preflight: each obstacle alone, with its reason and what mends it; and that other machines are left in peace."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import raspberry
from archbench.hardware import preflight as module
from archbench.hardware.preflight import Obstacle, fact, preflight, soft_limit_c

Record = Callable[[Mapping[str, str]], Path]

GOVERNOR = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
PI_5: Mapping[str, str] = {
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48850\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "proc/swaps": raspberry.SWAPS_TRIXIE,
    "proc/self/mountinfo": raspberry.MOUNTINFO,
} | {GOVERNOR.format(core): "performance\n" for core in range(4)}


@pytest.fixture(autouse=True)
def ready(firmware: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A board in order: a firmware that answers, a synchronised clock, nobody else on it."""
    firmware["get_throttled"] = raspberry.THROTTLED["well"]
    monkeypatch.setattr(module, "clock_error_s", lambda: 0.012)
    monkeypatch.setattr(module, "busy", lambda: 0.03)


def only(found: list[Obstacle]) -> Obstacle:
    assert len(found) == 1, found
    assert found[0].mend
    assert str(found[0]) == f"{found[0].kind}: {found[0].reason}. To mend it: {found[0].mend}"
    return found[0]


def test_a_board_in_order_has_no_obstacle(record: Record, tmp_path: Path) -> None:
    assert preflight(record(PI_5), folders=[tmp_path]) == []


@pytest.mark.parametrize("seen", ["weak supply once", "hot once"])
def test_what_was_before_the_run_is_no_obstacle(record: Record, firmware: dict[str, str], seen: str) -> None:
    firmware["get_throttled"] = raspberry.THROTTLED[seen]
    assert preflight(record(PI_5)) == []


@pytest.mark.parametrize(
    ("seen", "kind", "reason"),
    [
        ("weak supply now", "under-voltage", "the supply gives less than 4.63 V now"),
        ("hot now", "heat", "the firmware slows the board down now: soft temperature limit"),
        ("soft limit now", "heat", "the firmware slows the board down now: soft temperature limit"),
    ],
)
def test_what_holds_the_board_back_now_is_named(
    record: Record, firmware: dict[str, str], seen: str, kind: str, reason: str
) -> None:
    firmware["get_throttled"] = raspberry.THROTTLED[seen]
    found = only(preflight(record(PI_5)))
    assert (found.kind, found.reason) == (kind, reason)


def test_a_weak_supply_and_heat_are_two_obstacles(record: Record, firmware: dict[str, str]) -> None:
    firmware["get_throttled"] = "throttled=0xf000d"
    assert [found.kind for found in preflight(record(PI_5))] == ["under-voltage", "heat"]


def test_a_firmware_that_may_not_be_asked_is_an_obstacle(record: Record, firmware: dict[str, str]) -> None:
    del firmware["get_throttled"]
    found = only(preflight(record(PI_5)))
    assert found.kind == "firmware"
    assert "usermod -aG video" in found.mend


@pytest.mark.parametrize(
    ("model", "milli_c", "most", "refused"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", 70000, None, False),
        ("Raspberry Pi 5 Model B Rev 1.0", 71000, None, True),
        ("Raspberry Pi 5 Model B Rev 1.0", 71000, 75.0, False),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", 51000, None, True),  # its soft limit is 60 degrees
        ("Raspberry Pi 3 Model B Rev 1.2", 51000, None, False),
    ],
)
def test_a_board_that_is_warm_already_is_refused(
    record: Record, model: str, milli_c: int, most: float | None, refused: bool
) -> None:
    changed = {"proc/device-tree/model": f"{model}\0", "sys/class/thermal/thermal_zone0/temp": f"{milli_c}\n"}
    found = preflight(record({**PI_5, **changed}), max_temperature_c=most)
    if refused:
        assert only(found).reason.startswith(f"{milli_c // 1000} °C before the run")
        assert f"from {soft_limit_c(model):.0f} on" in only(found).reason
    else:
        assert found == []


def test_only_a_board_without_a_fan_is_told_to_get_one(record: Record) -> None:
    warm = {**PI_5, "sys/class/thermal/thermal_zone0/temp": "78000\n"}
    assert "give it a fan" not in only(preflight(record(warm))).mend
    assert "give it a fan" in only(preflight(record({**warm, "sys/class/thermal/cooling_device0/type": "cpu"}))).mend


def test_every_core_must_run_at_full_clock(record: Record) -> None:
    found = only(preflight(record({**PI_5, GOVERNOR.format(3): "ondemand\n"})))
    assert found.kind == "governor"
    assert "ondemand" in found.reason
    assert "performance" not in found.reason
    assert "tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor" in found.mend


@pytest.mark.parametrize(
    ("swaps", "kib"),
    [
        (raspberry.SWAPS_BOOKWORM, 102400),
        (raspberry.SWAPS_PARTITION, 51200),
        (raspberry.SWAPS_BOOKWORM.replace("102400", "8192"), 0),  # services that sleep
        (raspberry.SWAPS_BOTH, 0),  # on a disk
        (raspberry.SWAPS_TRIXIE.replace("1280", "999999"), 0),  # in memory
        (raspberry.SWAPS_EMPTY, 0),
    ],
)
def test_memory_on_a_card_is_an_obstacle_and_elsewhere_none(record: Record, swaps: str, kib: int) -> None:
    found = preflight(record({**PI_5, "proc/swaps": swaps}))
    assert [obstacle.kind for obstacle in found] == (["swap"] if kib else [])
    assert all(f"{kib // 1024}" in obstacle.reason for obstacle in found)


@pytest.mark.parametrize(("error_s", "refused"), [(16.0, True), (0.5, False), (None, False)])
def test_a_board_whose_clock_nobody_sets_is_refused(
    record: Record, monkeypatch: pytest.MonkeyPatch, error_s: float | None, refused: bool
) -> None:
    monkeypatch.setattr(module, "clock_error_s", lambda: error_s)
    found = preflight(record(PI_5))
    assert [obstacle.kind for obstacle in found] == (["clock"] if refused else [])
    assert all("timedatectl set-ntp true" in obstacle.mend for obstacle in found)


def test_a_clock_that_is_years_behind_is_an_obstacle_everywhere(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 12 * 3600.0)
    assert only(preflight(record({}))).reason == "the clock says 1970-01-01"


def test_others_on_the_cores_are_an_obstacle(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "busy", lambda: 0.51)
    found = only(preflight(record(PI_5)))
    assert (found.kind, found.reason) == ("load", "other processes keep 51% of the cores busy")


@pytest.mark.parametrize(
    ("percents", "expected", "looks"), [([90, 80, 20], 0.2, 3), ([90, 80, 70, 60, 65, 75], 0.6, 6), ([3], 0.03, 1)]
)
def test_what_has_just_ended_is_given_time(
    monkeypatch: pytest.MonkeyPatch, percents: list[float], expected: float, looks: int
) -> None:
    monkeypatch.undo()
    seen = iter(percents)
    asked = []

    def percent(interval: float) -> float:
        asked.append(interval)
        return next(seen)

    monkeypatch.setattr(psutil, "cpu_percent", percent)
    assert module.busy() == pytest.approx(expected)
    assert len(asked) == looks


def test_a_full_disk_is_an_obstacle_everywhere_and_is_named_once(record: Record, tmp_path: Path) -> None:
    folders = [tmp_path / "results" / "later", tmp_path / "state"]
    found = only(preflight(record({}), folders=folders, min_free_bytes=1 << 60))
    assert found.kind == "disk"
    assert f"free for {folders[0]}, a run wants" in found.reason
    assert preflight(record({}), folders=folders, min_free_bytes=1) == []


def test_a_card_that_can_only_be_read_is_an_obstacle(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(f_flag=os.ST_RDONLY, f_bavail=1 << 40, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert "can only be read" in only(preflight(record({}), folders=[tmp_path])).reason


def test_a_machine_that_is_no_board_is_asked_for_nothing_else(
    record: Record, firmware: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = {name: text for name, text in PI_5.items() if "device-tree" not in name}
    spoilt |= {GOVERNOR.format(0): "powersave\n", "sys/class/thermal/thermal_zone0/temp": "95000\n"}
    spoilt |= {"proc/swaps": raspberry.SWAPS_BOOKWORM}
    firmware["get_throttled"] = raspberry.THROTTLED["weak supply now"]
    monkeypatch.setattr(module, "clock_error_s", lambda: 16.0)  # a container has no network time of its own
    monkeypatch.setattr(module, "busy", lambda: 1.0)
    assert preflight(record(spoilt)) == []


def test_a_board_of_another_maker_is_not_asked_for_a_firmware(record: Record, firmware: dict[str, str]) -> None:
    firmware.clear()
    files = {
        **PI_5,
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        GOVERNOR.format(0): "schedutil",
    }
    assert [found.kind for found in preflight(record(files))] == ["governor"]


def test_this_machine_is_asked_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    error_s = module.clock_error_s()
    assert error_s is None or 0 <= error_s <= 16.0
    assert all(isinstance(found, Obstacle) for found in preflight(folders=[tmp_path], min_free_bytes=1))


def test_a_kernel_that_does_not_tell_the_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    class Refuses:
        def adjtimex(self, _: Any) -> int:
            return -1

    monkeypatch.setattr(module.ctypes, "CDLL", lambda _: Refuses())
    assert module.clock_error_s() is None


def test_a_row_says_what_was_overruled() -> None:
    found = [Obstacle("heat", "72 °C", "wait"), Obstacle("governor", "ondemand", "tee")]
    assert fact(found) == "heat: 72 °C; governor: ondemand"
    assert fact([]) == ""
