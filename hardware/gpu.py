"""NVIDIA GPUs, through NVML.

NVML counts every GPU of the host by PCI bus; CUDA counts those ``CUDA_VISIBLE_DEVICES`` leaves, in its order. The two
meet by UUID, so that a reordered or shortened list cannot put one card's name on another card's numbers.
UUIDs stay in memory: they identify a machine and are never published.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One NVIDIA GPU. Units: bytes, watts, hertz."""

    name: str
    uuid: str
    memory_bytes: int
    driver: str
    power_limit_w: float | None = None
    clock_max_hz: float | None = None
    memory_clock_max_hz: float | None = None
    capability: str | None = None  # "9.0"


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


def all_gpus(nvml: Any) -> list[Gpu]:
    """Every GPU of the host by PCI bus id, as CUDA orders them under CUDA_DEVICE_ORDER=PCI_BUS_ID."""
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        power = _asked(nvml, "nvmlDeviceGetPowerManagementLimit", handle)
        clock = _asked(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM)
        memory_clock = _asked(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM)
        capability = _asked(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
        gpu = Gpu(
            name=_text(nvml.nvmlDeviceGetName(handle)),
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            driver=driver,
            power_limit_w=None if power is None else power / 1000,
            clock_max_hz=None if clock is None else clock * 1e6,
            memory_clock_max_hz=None if memory_clock is None else memory_clock * 1e6,
            capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        )
        found.append((_text(nvml.nvmlDeviceGetPciInfo(handle).busId), gpu))
    return [gpu for _, gpu in sorted(found, key=lambda pair: pair[0])]


def visible(gpus: list[Gpu], mask: str | None) -> list[Gpu]:
    """What ``CUDA_VISIBLE_DEVICES=mask`` leaves, in its order: indices or UUID prefixes, cut at the first invalid one.

    MIG instances ("MIG-...") are not whole GPUs and are not mapped: the list ends there.
    """
    if mask is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in filter(None, (part.strip() for part in mask.split(","))):
        if entry.lstrip("+").isdigit():
            matching = gpus[int(entry) : int(entry) + 1]
        else:
            matching = (
                [gpu for gpu in gpus if gpu.uuid.lower().startswith(entry.lower())] if entry[:4] == "GPU-" else []
            )
        if len(matching) != 1 or matching[0] in chosen:
            break
        chosen.append(matching[0])
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
    chosen = visible(everything, environment.get("CUDA_VISIBLE_DEVICES"))
    if everything and not chosen:
        return Gpus((), "CUDA_VISIBLE_DEVICES hides every GPU")
    return Gpus(tuple(chosen), "" if chosen else "no NVIDIA GPU")


def handle_of(nvml: Any, gpu: Gpu) -> Any:
    """NVML's handle of a detected GPU, by UUID."""
    return nvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
