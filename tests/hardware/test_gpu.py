"""NVML through a fake: several cards, masks of every kind, MIG, and hosts without a driver."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from archbench.hardware.gpu import all_gpus, detect_gpus, handle_of, open_nvml, torch_cuda

Make = Callable[..., Any]


def names(nvml: Any, mask: str | None, order: str = "PCI_BUS_ID") -> list[str]:
    environment = {"CUDA_DEVICE_ORDER": order} | ({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask})
    return [gpu.name for gpu in detect_gpus(nvml, environment).visible]


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (None, "ABC"),
        ("0", "A"),
        ("2,0", "CA"),
        (" 1 , 0 ", "BA"),
        ("GPU-bbb", "B"),
        ("gpu-bbb", ""),  # CUDA asks for capitals
        ("GPU-bb,0", "BA"),
        ("GPU-a", ""),  # two cards begin like this
        ("", ""),
        ("-1", ""),
        ("0,-1,1", "A"),
        ("0,7,1", "A"),
        ("1,1", "B"),
        ("MIG-111", ""),  # no card is in MIG mode
        ("nonsense", ""),
    ],
)
def test_the_mask_is_followed_by_uuid_and_in_its_order(make_nvml: Make, mask: str | None, seen: str) -> None:
    assert "".join(names(make_nvml(), mask)) == seen


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (None, ["A MIG 1g.10gb"]),
        ("0", ["A MIG 1g.10gb"]),
        ("MIG-122", ["A MIG 2g.20gb"]),
        ("MIG-12", ["A MIG 2g.20gb"]),
        ("MIG-1", []),  # two instances begin like this
        ("MIG-122,MIG-111", ["A MIG 2g.20gb"]),  # CUDA shows a process one instance
        ("1,MIG-111", ["B", "A MIG 1g.10gb"]),
        ("GPU-bbb", ["B"]),
    ],
)
def test_a_card_in_mig_mode_is_seen_by_its_instance(make_nvml: Make, mask: str | None, seen: list[str]) -> None:
    assert names(make_nvml(mig=True), mask) == seen


def test_a_card_in_mig_mode_without_an_instance_is_skipped(make_nvml: Make) -> None:
    nvml = make_nvml(mig=True)
    nvml.instances = ()
    assert names(nvml, None) == ["B", "C"]
    nvml.cards = nvml.cards[1:2]
    assert detect_gpus(nvml, {}).reason == "MIG mode is on without an instance"


def test_an_instance_knows_its_card(make_nvml: Make) -> None:
    nvml = make_nvml(mig=True)
    (instance,) = detect_gpus(nvml, {"CUDA_VISIBLE_DEVICES": "MIG-122"}).visible
    assert (instance.uuid, instance.card_uuid, instance.is_instance) == ("MIG-122", "GPU-aaa", True)
    assert handle_of(nvml, instance)[1] == "A"


def test_numbers_among_different_cards_need_an_order(make_nvml: Make) -> None:
    found = detect_gpus(make_nvml(), {"CUDA_VISIBLE_DEVICES": "1"})
    assert found.visible == ()
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in found.reason
    assert names(make_nvml(), "GPU-ccc", order="FASTEST_FIRST") == []
    assert names(make_nvml(), "GPU-abc,GPU-aaa", order="FASTEST_FIRST") == ["C", "A"]
    alike = make_nvml()
    alike.cards = tuple((uuid, "A", bus) for uuid, _, bus in alike.cards)
    assert len(detect_gpus(alike, {}).visible) == 3


def test_facts_are_in_si_units_and_missing_ones_are_none(make_nvml: Make) -> None:
    gpu = all_gpus(make_nvml())[0]
    assert (gpu.power_limit_w, gpu.capability, gpu.driver) == (700.0, "9.0", "580.1")
    assert (gpu.clock_max_hz, gpu.memory_clock_max_hz, gpu.cuda_version) == (1.98e9, None, "13.1")
    assert gpu.memory_bytes == 80 << 30


def test_a_card_that_shares_the_hosts_memory_has_none_of_its_own(make_nvml: Make) -> None:
    nvml = make_nvml()
    nvml.broken.add("memory")
    assert all_gpus(nvml)[0].memory_bytes is None


def test_no_gpu_always_has_a_reason(make_nvml: Make) -> None:
    assert detect_gpus("NVIDIA driver not found").reason == "NVIDIA driver not found"
    assert detect_gpus(make_nvml(), {"CUDA_VISIBLE_DEVICES": "-1"}).reason == "CUDA_VISIBLE_DEVICES hides every GPU"
    empty = make_nvml()
    empty.cards = ()
    assert detect_gpus(empty, {}).reason == "no NVIDIA GPU"
    broken = make_nvml()
    broken.broken.add("count")
    assert detect_gpus(broken, {}).reason == "NVML failed: Not Supported"


def test_a_host_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml

    def missing() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert open_nvml() == "NVIDIA driver not found"
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_nvml() == "the package nvidia-ml-py is not installed"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cuda: Optional[str] = '12.8'", "12.8"),
        ('cuda = "13.0"', "13.0"),
        ("cuda: Optional[str] = None", ""),
    ],
)
def test_torchs_cuda_is_read_without_importing_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, expected: str
) -> None:
    (tmp_path / "version.py").write_text(f"__version__ = '2.13.0'\n{line}\nhip: Optional[str] = None\n")
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert torch_cuda() == expected
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert torch_cuda() is None
