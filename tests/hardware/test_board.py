"""Boards: the device tree, the firmware's answers, and machines that are no boards."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from archbench.hardware.board import Board, detect_board
from archbench.hardware.detect import Host
from archbench.hardware.pi import vcgencmd

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


def test_the_firmware_is_asked_and_may_stay_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError("vcgencmd")

    def hangs(*_: Any, **__: Any) -> Any:
        raise subprocess.TimeoutExpired("vcgencmd", 5)

    def answers(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 0, stdout="throttled=0x0\n")

    def refuses(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 255, stdout="VCHI initialization failed\n")

    for run, expected in ((absent, ""), (hangs, ""), (answers, "throttled=0x0"), (refuses, "")):
        monkeypatch.setattr(subprocess, "run", run)
        assert vcgencmd("get_throttled") == expected
