"""NVIDIA GPUs, through NVML.

NVML counts every GPU of the host by PCI bus; CUDA counts those ``CUDA_VISIBLE_DEVICES`` leaves, in its order. The two
meet by UUID, so that a reordered or shortened list cannot put one card's name on another card's numbers.
UUIDs stay in memory: they identify a machine and are never published.

Source: CUDA C++ Programming Guide, "CUDA Environment Variables"; NVIDIA Multi-Instance GPU User Guide
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from archbench.hardware.cgroup import read_text


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One NVIDIA GPU, or one MIG instance of it. Units: bytes, watts, hertz."""

    name: str
    uuid: str
    card_uuid: str  # of the physical card: differs from ``uuid`` for a MIG instance
    driver: str
    memory_bytes: int | None = None  # None where it shares the host's memory (Jetson)
    power_limit_w: float | None = None
    clock_max_hz: float | None = None
    memory_clock_max_hz: float | None = None
    capability: str | None = None  # "9.0"
    cuda_version: str = ""  # the newest CUDA this driver runs, "13.0"
    instances: tuple[Gpu, ...] | None = None  # MIG instances, None where the card is not in MIG mode

    @property
    def is_instance(self) -> bool:
        return self.uuid != self.card_uuid


class Gpus(msgspec.Struct, frozen=True):
    """The GPUs CUDA would see, in CUDA's order, or why there are none."""

    visible: tuple[Gpu, ...]
    reason: str = ""


def open_nvml() -> Any:
    """The initialised ``pynvml`` module, or a reason as a string. Never raises for a host without a driver."""
    try:
        import pynvml
    except ImportError:
        return "the package nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        missing = isinstance(error, pynvml.NVMLError_LibraryNotFound | pynvml.NVMLError_DriverNotLoaded)
        return "NVIDIA driver not found" if missing else f"NVML does not start: {error}"
    return pynvml


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _asked(nvml: Any, question: str, *arguments: Any) -> Any:
    """An optional figure: None where this card or driver does not tell."""
    try:
        return getattr(nvml, question)(*arguments)
    except nvml.NVMLError:
        return None


def _describe(nvml: Any, handle: Any, driver: str, cuda_version: str, card: Gpu | None = None) -> Gpu:
    memory = _asked(nvml, "nvmlDeviceGetMemoryInfo", handle)
    power = _asked(nvml, "nvmlDeviceGetPowerManagementLimit", handle)
    clock = _asked(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM)
    memory_clock = _asked(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM)
    capability = _asked(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    uuid = _text(nvml.nvmlDeviceGetUUID(handle))
    return Gpu(
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid=uuid,
        card_uuid=card.uuid if card else uuid,
        driver=driver,
        memory_bytes=None if memory is None else int(memory.total),
        power_limit_w=None if power is None else power / 1000,
        clock_max_hz=None if clock is None else clock * 1e6,
        memory_clock_max_hz=None if memory_clock is None else memory_clock * 1e6,
        capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        cuda_version=cuda_version,
    )


def all_gpus(nvml: Any) -> list[Gpu]:
    """Every GPU of the host by PCI bus id, as CUDA orders them under CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    newest = _asked(nvml, "nvmlSystemGetCudaDriverVersion") or 0
    cuda_version = f"{newest // 1000}.{newest % 1000 // 10}" if newest else ""
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        gpu = _describe(nvml, handle, driver, cuda_version)
        mode = _asked(nvml, "nvmlDeviceGetMigMode", handle)
        if mode is not None and mode[0]:
            places = range(_asked(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
            handles = [_asked(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, place) for place in places]
            instances = [_describe(nvml, h, driver, cuda_version, gpu) for h in handles if h is not None]
            gpu = msgspec.structs.replace(gpu, instances=tuple(instances))
        bus = _asked(nvml, "nvmlDeviceGetPciInfo", handle)
        found.append(("" if bus is None else _text(bus.busId), index, gpu))
    return [gpu for _, _, gpu in sorted(found, key=lambda item: item[:2])]


def visible(gpus: list[Gpu], mask: str | None) -> list[Gpu]:
    """What ``CUDA_VISIBLE_DEVICES=mask`` leaves, in its order: indices or UUID prefixes, cut at the first invalid one.

    A card in MIG mode stands for its first instance. CUDA shows a process one instance at most: the list ends there.
    """
    everything = [*gpus, *(instance for gpu in gpus for instance in gpu.instances or ())]
    chosen: list[Gpu] = []
    if mask is None:
        matches = [[gpu] for gpu in gpus]
    else:
        matches = []
        for entry in (part.strip() for part in mask.split(",")):
            if re.fullmatch(r"\+?\d+", entry):
                matches.append(gpus[int(entry) : int(entry) + 1])
            elif entry.startswith(("GPU-", "MIG-")):
                matches.append([gpu for gpu in everything if gpu.uuid.lower().startswith(entry.lower())])
            else:
                break
    for match in matches:
        if len(match) != 1:
            break
        gpu = match[0] if match[0].instances is None else next(iter(match[0].instances), None)
        if gpu is None and mask is None:
            continue  # MIG mode without an instance: CUDA sees the other cards
        if gpu is None or gpu in chosen:
            break
        chosen.append(gpu)
        if gpu.is_instance:
            break
    return chosen


def detect_gpus(nvml: Any = None, environment: Mapping[str, str] | None = None) -> Gpus:
    """The GPUs CUDA would see. Never raises: a host without a driver has none, and a reason."""
    nvml = open_nvml() if nvml is None else nvml
    if isinstance(nvml, str):
        return Gpus((), nvml)
    environment = os.environ if environment is None else environment
    try:
        everything = all_gpus(nvml)
    except nvml.NVMLError as error:
        return Gpus((), f"NVML failed: {error}")
    mask = environment.get("CUDA_VISIBLE_DEVICES")
    chosen = visible(everything, mask)
    if everything and not chosen:
        return Gpus(
            (), "MIG mode is on without an instance" if mask is None else "CUDA_VISIBLE_DEVICES hides every GPU"
        )
    # CUDA's own order is fastest first, by a rule it keeps to itself: among different cards a number is ambiguous.
    by_number = mask is None or re.search(r"(?:^|,)\s*\+?\d", mask) is not None
    ordered = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if by_number and not ordered and len({gpu.name for gpu in everything}) > 1:
        return Gpus((), "the cards differ: set CUDA_DEVICE_ORDER=PCI_BUS_ID, or CUDA_VISIBLE_DEVICES to a UUID")
    return Gpus(tuple(chosen), "" if chosen else "no NVIDIA GPU")


def handle_of(nvml: Any, gpu: Gpu) -> Any:
    """NVML's handle of a detected GPU's physical card, by UUID."""
    return nvml.nvmlDeviceGetHandleByUUID(gpu.card_uuid)


def torch_cuda() -> str | None:
    """The CUDA version torch was built for, "" for a build without CUDA, None without torch. torch is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    built = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", read_text(Path(spec.origin).with_name("version.py")), re.M)
    return built[1] if built else ""


def why_torch_cannot(gpu: Gpu) -> str:
    """Why torch cannot use a GPU, as far as can be told without importing it; "" where nothing speaks against it."""
    built = torch_cuda()
    if built is None:
        return "torch is not installed"
    if not built:
        return "this build of torch has no CUDA"
    # Any minor version of the same major one runs; an older major one does not.
    if gpu.cuda_version and int(gpu.cuda_version.partition(".")[0]) < int(built.partition(".")[0]):
        return f"the driver runs CUDA {gpu.cuda_version}, torch needs {built}"
    return ""
