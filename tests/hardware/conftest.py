"""Recorded machines and a fake NVML, shared by the tests of this room."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from archbench.hardware.detect import Host, detect


def x86(vendor: str, family: int, model: int, name: str, flags: str, count: int = 2) -> str:
    return "".join(
        f"processor\t: {n}\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\n"
        f"flags\t\t: fpu sse2 {flags}\n\n"
        for n in range(count)
    )


def arm(*parts: str, features: str = "fp asimd evtstrm crc32 cpuid", implementer: str = "0x41") -> str:
    return "".join(
        f"processor\t: {n}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {implementer}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: {part}\nCPU revision\t: 1\n\n"
        for n, part in enumerate(parts)
    )


A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
GOVERNOR = "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
# name -> (architecture, files)
MACHINES: dict[str, tuple[str, Mapping[str, str]]] = {
    "epyc-zen4": (
        "x86_64",
        {
            "proc/cpuinfo": x86(
                "AuthenticAMD", 25, 17, "AMD EPYC 9R14", "avx2 avx512f avx512_vnni avx512_bf16 hypervisor"
            ),
            "proc/meminfo": "MemTotal:       16000000 kB\n",
            "sys/class/dmi/id/product_name": "m7a.large",
            "sys/class/dmi/id/sys_vendor": "Amazon EC2",
            "sys/devices/system/clocksource/clocksource0/available_clocksource": "kvm-clock tsc acpi_pm \n",
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\n',
        },
    ),
    "masked-xeon": (  # the model number of a desktop part beside AMX: a hypervisor's invention
        "x86_64",
        {
            "proc/cpuinfo": x86(
                "GenuineIntel",
                6,
                167,
                "Intel(R) Xeon(R) Processor",
                "avx2 avx512f avx512_vnni avx_vnni avx512_bf16 avx512_vbmi2 avx512_bitalg avx512_fp16 amx_tile "
                "amx_bf16 amx_int8 hypervisor",
                count=1,
            )
        },
    ),
    "raspberry-pi-4": (
        "aarch64",
        {
            "proc/cpuinfo": arm(*["0xd08"] * 4),
            "proc/meminfo": "MemTotal:        3884000 kB\n",
            "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
            "proc/device-tree/chosen/bootloader/version": "69471177bf4bd5fd8a1ef5d2ea3d8bd2b3dc7bb9\0",
            GOVERNOR: "ondemand\n",
        },
    ),
    "raspberry-pi-5": (
        "aarch64",
        {
            "proc/cpuinfo": arm(*["0xd0b"] * 4, features=A76),
            "proc/meminfo": "MemTotal:        8245000 kB\n",
            "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            GOVERNOR: "performance\n",
        },
    ),
    "jetson-orin-nano": (
        "aarch64",
        {
            "proc/cpuinfo": arm(*["0xd42"] * 6, features=A76),
            "proc/meminfo": "MemTotal:        7620000 kB\n",
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            GOVERNOR: "schedutil\n",
        },
    ),
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of this room decide themselves what the environment says."""
    for name in ("ARCHBENCH_MACHINE", "ARCHBENCH_DEVICE", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def firmware(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a Raspberry Pi's firmware answers to a command: nothing, until a test has put something in."""
    answers: dict[str, str] = {}
    monkeypatch.setattr("archbench.hardware.pi.vcgencmd", lambda *words: answers.get(" ".join(words), ""))
    return answers


@pytest.fixture
def record(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """Write files below the test's own root and return that root."""

    def write(files: Mapping[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


@pytest.fixture
def recorded(record: Callable[[Mapping[str, str]], Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Host]:
    """Detect a recorded machine by its name in MACHINES; this process may use all of its cores."""

    def look(name: str) -> Host:
        architecture, files = MACHINES[name]
        monkeypatch.setattr(platform, "machine", lambda: architecture)
        monkeypatch.setattr("archbench.hardware.cpu.usable_cores", lambda root: 1024)
        return detect(record(files))

    return look


class FakeNvml:
    """Three different cards whose NVML order is not that of their PCI buses; ``mig`` puts card A in MIG mode."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU, NVML_PERF_POLICY_THERMAL = 1, 2, 0, 1

    class NVMLError(Exception): ...

    cards = (("GPU-bbb", "B", "0000:20:00.0"), ("GPU-aaa", "A", "0000:10:00.0"), ("GPU-abc", "C", "0000:30:00.0"))
    instances: tuple[tuple[str, str], ...] = (("MIG-111", "A MIG 1g.10gb"), ("MIG-122", "A MIG 2g.20gb"))

    def __init__(self, mig: bool = False) -> None:
        self.mig = mig
        self.millijoules = 5000
        self.reasons = 0
        self.held_back_ns = 0
        self.broken: set[str] = set()  # questions this driver does not answer
        self.asked_about: list[Any] = []  # the handles temperatures were asked of

    def _answer(self, question: str) -> None:
        if question in self.broken:
            raise self.NVMLError("Not Supported")

    def nvmlDeviceGetCount(self) -> int:
        self._answer("count")
        return len(self.cards)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.1"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13010

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        return next(card for card in self.cards if card[0] == uuid)

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return str(handle[0])

    def nvmlDeviceGetName(self, handle: Any) -> bytes:
        return str(handle[1]).encode()

    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        return SimpleNamespace(busId=handle[2])

    def nvmlDeviceGetMigMode(self, handle: Any) -> list[int]:
        if handle[1] != "A":
            raise self.NVMLError("Not Supported")
        return [int(self.mig), int(self.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: int) -> Any:
        if index >= len(self.instances):
            raise self.NVMLError("Not Found")
        return self.instances[index]

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        self._answer("memory")
        return SimpleNamespace(total=80 << 30)

    def nvmlDeviceGetPowerManagementLimit(self, handle: Any) -> int:
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, kind: int) -> int:
        if kind == self.NVML_CLOCK_MEM:
            raise self.NVMLError("Not Supported")
        return 1980

    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        return (9, 0)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        self._answer("energy")
        self.millijoules += 2000
        return self.millijoules

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        self._answer("temperature")
        self.asked_about.append(handle)
        return 65

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        return 1755

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self.reasons

    def nvmlDeviceGetViolationStatus(self, handle: Any, policy: int) -> Any:
        self._answer("violation")
        return SimpleNamespace(violationTime=self.held_back_ns)


@pytest.fixture
def make_nvml() -> Callable[..., FakeNvml]:
    return FakeNvml
