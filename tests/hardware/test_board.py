"""Boards: the device tree, the firmware's answers, and machines that are no boards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import raspberry
from archbench.hardware.board import Board, detect_board, fan_rpm
from archbench.hardware.detect import Host

Record = Callable[[Mapping[str, str]], Path]


def test_a_raspberry_pi_has_model_firmware_and_governor(recorded: Callable[[str], Host]) -> None:
    board = recorded("raspberry-pi-4").board
    assert board is not None
    assert board.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert board.firmware.startswith("69471177")
    assert board.governor == "ondemand"


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberry-pi-3"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "raspberry-pi-zero-2"),
        ("Raspberry Pi Compute Module 4 Rev 1.1", "raspberry-pi-compute-module-4"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "nvidia-jetson-agx-orin"),
        ("Radxa ROCK 5B", "radxa-rock-5b"),
    ],
)
def test_a_family_has_no_revision(model: str, family: str) -> None:
    assert Board(model=model).family == family


@pytest.mark.parametrize("files", [{}, {"proc/device-tree/model": "linux,dummy-virt\0"}])
def test_a_machine_without_a_named_device_tree_is_no_board(record: Record, files: dict[str, str]) -> None:
    assert detect_board(record(files)) is None


@pytest.mark.parametrize(
    ("machine", "built"),
    [
        ("raspberry-pi-5", "2025/05/08 15:13:17 version 69471177 (release) (embedded)"),
        (
            "raspberry-pi-4",
            "May 14 2025 12:23:36 version 17084b403fb60475b8ee2641c26049a7d54bf153 (clean) (release) (start)",
        ),
    ],
)
def test_the_firmware_says_when_it_was_built(
    recorded: Callable[[str], Host], firmware: dict[str, str], machine: str, built: str
) -> None:
    firmware["version"] = raspberry.VERSION[machine]
    firmware["bootloader_version"] = raspberry.BOOTLOADER_VERSION.strip()
    facts = recorded(machine).facts()
    assert facts["board.firmware"] == built
    assert facts["board.bootloader"] == "2023/01/11 17:40:52 version 8ba17717fbcedd4c3b6d4bce7e50c7af4155cba9 (release)"


def test_what_a_board_has_been_held_back_by_is_a_fact(
    recorded: Callable[[str], Host], firmware: dict[str, str]
) -> None:
    assert "board.throttled" not in recorded("raspberry-pi-5").facts()  # nobody answered
    for seen in raspberry.THROTTLED.values():
        firmware["get_throttled"] = seen
        assert f"throttled={recorded('raspberry-pi-5').facts()['board.throttled']}" == seen


def test_the_governors_of_all_cores_count(record: Record) -> None:
    root = record(
        {
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor": "ondemand\n",
            "sys/devices/system/cpu/cpufreq/ondemand/up_threshold": "50\n",
        }
    )
    board = detect_board(root)
    assert board is not None
    assert board.governor == "ondemand, performance"


def test_a_fan_the_kernel_controls_is_a_fact_and_its_turns_are_read(record: Record) -> None:
    files = {
        "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
        "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
        "sys/class/hwmon/hwmon2/name": "pwmfan\n",
        "sys/class/hwmon/hwmon2/fan1_input": "2884\n",
    }
    board = detect_board(record(files))
    assert board is not None
    assert board.cooler == "pwm-fan"
    assert fan_rpm(record(files)) == 2884


def test_a_board_without_a_fan_says_nothing_of_one(record: Record) -> None:
    root = record({"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"})
    board = detect_board(root)
    assert board is not None
    assert board.cooler == ""
    assert fan_rpm(root) is None
    record({"sys/class/hwmon/hwmon2/fan1_input": ""})  # a driver that cannot be read
    assert fan_rpm(root) is None


def test_a_board_says_whose_it_is() -> None:
    assert Board(model="Raspberry Pi Zero 2 W Rev 1.0").is_raspberry_pi
    assert not Board(model="Radxa ROCK 5B").is_raspberry_pi
