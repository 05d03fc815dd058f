"""NVML through a fake: several cards, masks of every kind, and hosts without a driver."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from archbench.hardware.gpu import all_gpus, detect_gpus, handle_of
from archbench.hardware.load import gpu_throttle, pi_throttle
from archbench.hardware.meters import EnergyMeter, NoMeter, nvml_meter


class FakeNvml:
    """Three cards; NVML's order is not the order of their PCI buses."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    class NVMLError(Exception): ...

    cards = (("GPU-bbb", "B", "0000:20:00.0"), ("GPU-aaa", "A", "0000:10:00.0"), ("GPU-abc", "C", "0000:30:00.0"))
    millijoules = 5000

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.1"

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return [card[0] for card in self.cards].index(uuid)

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return self.cards[handle][0]

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return self.cards[handle][1].encode()

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:
        return SimpleNamespace(busId=self.cards[handle][2])

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        raise self.NVMLError("not supported")

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return (9, 0)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        self.millijoules += 2000
        return self.millijoules


def names(mask: str | None) -> str:
    environment = {} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}
    return "".join(gpu.name for gpu in detect_gpus(FakeNvml(), environment).visible)


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (None, "ABC"),
        ("0", "A"),
        ("2,0", "CA"),
        ("GPU-bbb", "B"),
        ("GPU-bb,0", "BA"),
        ("GPU-a", ""),  # two cards begin like this
        ("", ""),
        ("-1", ""),
        ("0,-1,1", "A"),
        ("0,7,1", "A"),
        ("1,1", "B"),
        ("MIG-GPU-aaa/1/0", ""),
        ("nonsense", ""),
    ],
)
def test_the_mask_is_followed_by_uuid_and_in_its_order(mask: str | None, seen: str) -> None:
    assert names(mask) == seen


def test_facts_are_in_si_units_and_missing_ones_are_none() -> None:
    gpu = all_gpus(FakeNvml())[0]
    assert (gpu.power_limit_w, gpu.capability, gpu.driver) == (700.0, "9.0", "580.1")
    assert gpu.clock_max_hz is None
    assert handle_of(FakeNvml(), gpu) == 1


def test_no_driver_and_hidden_cards_have_a_reason() -> None:
    assert detect_gpus("NVIDIA driver not found").reason == "NVIDIA driver not found"
    assert detect_gpus(FakeNvml(), {"CUDA_VISIBLE_DEVICES": "-1"}).reason == "CUDA_VISIBLE_DEVICES hides every GPU"


def test_energy_is_the_difference_of_the_counter_of_the_visible_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    meter = nvml_meter(FakeNvml())
    assert isinstance(meter, EnergyMeter)
    with meter.measure() as reading:
        pass
    assert reading.joules == pytest.approx(2.0)
    assert nvml_meter("NVIDIA driver not found") == NoMeter("NVIDIA driver not found")


def test_throttling_is_put_in_words_and_a_power_cap_is_not_throttling() -> None:
    assert gpu_throttle(0x04) == ""  # the software power cap: how a card runs under load
    assert gpu_throttle(0x20 | 0x80) == "too hot, power brake"
    assert pi_throttle("throttled=0x50005\n") == "under-voltage, throttled"
    assert pi_throttle("throttled=0x50000") == ""  # since boot, not now
    assert pi_throttle("") == ""
