"""Profiles: complete, sourced, and matched by the right machines only."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from archbench.hardware.board import Board
from archbench.hardware.cpu import Cpu
from archbench.hardware.detect import Host
from archbench.hardware.gpu import Gpu
from archbench.hardware.profiles import Profile, match, profiles

WANTED = {
    "h100-sxm",
    "h200-sxm",
    "a100-sxm-80gb",
    "l4",
    "rtx-4090",
    "generic-x86-cpu",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "jetson-orin-nano",
    "apple-m-series",
}
DTYPES = {"fp64", "fp32", "tf32", "bf16", "fp16", "int8"}


def test_the_promised_profiles_are_there() -> None:
    assert set(profiles()) >= WANTED


@pytest.mark.parametrize("name", sorted(profiles()))
def test_a_profile_is_complete(name: str) -> None:
    profile = profiles()[name]
    assert profile.id == name
    assert profile.source.startswith("https://")
    figures = [profile.memory_bytes, profile.memory_bytes_per_s, profile.tdp_w, *profile.matrix_per_s.values()]
    assert all(figure > 0 for figure in figures if figure is not None)
    assert set(profile.matrix_per_s) <= DTYPES
    if profile.kind == "gpu":
        assert profile.memory_bytes
        assert profile.memory_bytes_per_s
        assert profile.tdp_w
        rates = profile.matrix_per_s
        # Narrower types are never slower, and each step of a tensor core is about a factor of two: a figure with
        # sparsity among dense ones would break the steps.
        assert rates["fp32"] <= rates["tf32"] < rates["bf16"] <= rates["fp16"] < rates["int8"]
        assert rates["bf16"] / rates["tf32"] == pytest.approx(2, rel=0.02)
        assert rates["int8"] / rates["bf16"] in (pytest.approx(2, rel=0.01), pytest.approx(4, rel=0.01))


def gpu_host(name: str) -> Host:
    cpu = Cpu(model="x", vendor="amd", architecture="x86_64", cores=4, cores_total=4)
    gpu = Gpu(name=name, uuid="GPU-0", card_uuid="GPU-0", memory_bytes=80 << 30, driver="580")
    return Host(cpu=cpu, memory_bytes=1 << 36, gpus=(gpu,))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # an eighth of the card has not its peaks
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_a_gpu_matches_its_own_datasheet_only(name: str, expected: str | None) -> None:
    found = match(gpu_host(name), "cuda")
    assert (found.id if found else None) == expected


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("raspberry-pi-4", "raspberry-pi-4"),
        ("raspberry-pi-5", "raspberry-pi-5"),
        ("jetson-orin-nano", "jetson-orin-nano"),
        ("epyc-zen4", "generic-x86-cpu"),
    ],
)
def test_a_recorded_machine_matches(recorded: Callable[[str], Host], machine: str, expected: str) -> None:
    found = match(recorded(machine), "cpu")
    assert found is not None
    assert found.id == expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("Raspberry Pi 400 Rev 1.0", "raspberry-pi-4"),
        ("Raspberry Pi Compute Module 4 Rev 1.1", "raspberry-pi-4"),
        ("Raspberry Pi 500 Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi Compute Module 5 Rev 1.0", "raspberry-pi-5"),
        ("Raspberry Pi 3 Model B Plus Rev 1.3", None),
        ("Raspberry Pi Zero 2 W Rev 1.0", None),
    ],
)
def test_boards_of_one_chip_share_a_profile(model: str, expected: str | None) -> None:
    cpu = Cpu(model="Cortex", vendor="arm", architecture="aarch64", cores=4, cores_total=4)
    found = match(Host(cpu=cpu, memory_bytes=4_000_000_000, board=Board(model=model)), "cpu")
    assert (found.id if found else None) == expected


def test_an_unknown_arm_server_matches_nothing() -> None:
    cpu = Cpu(model="Neoverse V1", vendor="arm", architecture="aarch64", cores=4, cores_total=4)
    assert match(Host(cpu=cpu, memory_bytes=1 << 34), "cpu") is None


def test_the_rates_of_a_boards_gpu_are_not_those_of_its_cpu() -> None:
    jetson = profiles()["jetson-orin-nano"]
    assert jetson.matrix_rate("int8", "cuda") == 20e12
    assert jetson.matrix_rate("int8", "cpu") is None
    assert profiles()["h100-sxm"].matrix_rate("bf16", "cuda") == 989.4e12
    assert profiles()["h100-sxm"].matrix_rate("bf16", "cpu") is None


def test_a_misspelt_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="memory_bandwidth"):
        msgspec.convert({"id": "x", "name": "x", "kind": "gpu", "source": "", "memory_bandwidth": 1}, Profile)
