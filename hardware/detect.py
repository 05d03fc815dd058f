"""What this machine is, and what it is called.

The name comes from the hardware, because host names are random in containers and private elsewhere:
``nvidia-h100-sxm``, ``raspberry-pi-5-8gb``, ``amd-epyc-zen4-2c``. A GPU host measures its GPU; ``ARCHBENCH_DEVICE=cpu``
measures its CPU, under the CPU's name. ``ARCHBENCH_MACHINE`` overrides the name.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path

import msgspec
import psutil

from archbench.cells import Scalar
from archbench.hardware.board import Board, detect_board
from archbench.hardware.cpu import Cpu, linux_cpu, mac_cpu, read_text
from archbench.hardware.gpu import Gpu, detect_gpus
from archbench.names import is_safe_name, slugify
from archbench.track import Device, Place

GIB = 1 << 30


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Everything detected about a machine."""

    cpu: Cpu
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()
    no_gpu_reason: str = ""
    board: Board | None = None
    virtualization: str = "none"
    os_name: str = ""
    kernel: str = ""

    def facts(self) -> dict[str, Scalar]:
        """Flat, publishable facts. No host name, no serial number, no UUID."""
        facts: dict[str, Scalar] = {
            "cpu.model": self.cpu.model,
            "cpu.vendor": self.cpu.vendor,
            "cpu.architecture": self.cpu.architecture,
            "cpu.microarchitecture": self.cpu.microarchitecture,
            "cpu.cores": self.cpu.cores,
            "cpu.cores_total": self.cpu.cores_total,
            "cpu.isa": ", ".join(self.cpu.isa),
            "memory.bytes": self.memory_bytes,
            "virtualization": self.virtualization,
            "os.name": self.os_name,
            "os.kernel": self.kernel,
        }
        for level, size in sorted(self.cpu.cache_bytes.items()):
            facts[f"cpu.cache.l{level}_bytes"] = size
        for i, gpu in enumerate(self.gpus):
            for key in (
                "name",
                "memory_bytes",
                "driver",
                "power_limit_w",
                "clock_max_hz",
                "memory_clock_max_hz",
                "capability",
            ):
                facts[f"gpu.{i}.{key}"] = getattr(gpu, key)
        if not self.gpus:
            facts["gpu"] = self.no_gpu_reason
        if self.board:
            facts |= {
                "board.model": self.board.model,
                "board.firmware": self.board.firmware,
                "board.governor": self.board.governor,
            }
        return {key: value for key, value in facts.items() if value not in ("", None)}


def virtualization(root: Path = Path("/")) -> str:
    """The hypervisor or container kind, or "none": CPU flag, DMI product, container marks."""
    product = read_text(root / "sys/class/dmi/id/product_name") + " " + read_text(root / "sys/class/dmi/id/sys_vendor")
    for mark, name in (
        ("KVM", "kvm"),
        ("QEMU", "kvm"),
        ("VMware", "vmware"),
        ("VirtualBox", "virtualbox"),
        ("EC2", "kvm"),
    ):
        if mark in product:
            return name
    hypervisor = read_text(root / "sys/hypervisor/type")
    if hypervisor:
        return hypervisor
    if re.search(r"^flags\s*:.*\bhypervisor\b", read_text(root / "proc/cpuinfo"), re.MULTILINE):
        return "virtual machine"
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return "container"
    return "none"


def detect(root: Path = Path("/")) -> Host:
    """Look at this machine (or at a recorded one below ``root``)."""
    recorded = root != Path("/")
    gpus = detect_gpus("recorded machine" if recorded else None)
    memory = re.search(r"MemTotal:\s*(\d+) kB", read_text(root / "proc/meminfo"))
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_text(root / "etc/os-release"), re.MULTILINE)
    return Host(
        cpu=mac_cpu() if sys.platform == "darwin" and not recorded else linux_cpu(root),
        memory_bytes=int(memory[1]) * 1024 if memory else psutil.virtual_memory().total,
        gpus=gpus.visible,
        no_gpu_reason=gpus.reason,
        board=detect_board(root),
        virtualization=virtualization(root),
        os_name=release[1] if release else platform.platform(terse=True),
        kernel=re.split(r"[^0-9.]", platform.release())[0],  # the numbers: suffixes name clouds and companies
    )


def default_device(host: Host) -> Device:
    """The device this machine measures: its first visible GPU, else its CPU; ``ARCHBENCH_DEVICE`` decides otherwise.

    Raises ValueError for a value that is neither ``cpu`` nor ``cuda``, and for ``cuda`` without a visible GPU.
    """
    wanted = os.environ.get("ARCHBENCH_DEVICE", "")
    if wanted == "cpu":
        return "cpu"
    if wanted == "cuda":
        if not host.gpus:
            raise ValueError(f"ARCHBENCH_DEVICE is cuda, but there is no GPU to use: {host.no_gpu_reason}")
        return "cuda"
    if wanted:
        raise ValueError(f"ARCHBENCH_DEVICE is {wanted!r}; it must be cpu or cuda, or not be set")
    return "cuda" if host.gpus else "cpu"


def gpu_name(name: str) -> str:
    """``nvidia-h100-sxm`` from "NVIDIA H100 80GB HBM3": a card without "PCIe" or "NVL" in its name is the SXM one."""
    text = re.sub(r"\b\d+\s?GB\b", "", name.removeprefix("NVIDIA ").removeprefix("GeForce "), flags=re.IGNORECASE)
    if re.match(r"H100\b", text) and not re.search(r"PCIe|NVL", text):
        text = "H100 SXM"
    elif re.match(r"H200\b", text) and "NVL" not in text:
        text = "H200 SXM"
    return "nvidia-" + slugify(text)


def cpu_name(host: Host) -> str:
    """``amd-epyc-zen4-2c``: vendor, line, microarchitecture, cores; boards are called by board and memory."""
    if host.board:
        return f"{host.board.family}-{max(1, round(host.memory_bytes / GIB))}gb"
    cpu = host.cpu
    line = next(
        (word for word in ("epyc", "ryzen", "xeon", "core") if re.search(rf"\b{word}\b", cpu.model.lower())), ""
    )
    if cpu.vendor == "intel" and cpu.microarchitecture and line == "xeon":
        line = ""  # "xeon" says nothing a microarchitecture does not
    parts = [cpu.vendor or slugify(cpu.architecture), line, cpu.microarchitecture or slugify(cpu.model)[:40]]
    return "-".join([*filter(None, parts), f"{cpu.cores}c"])


def machine_name(host: Host, device: Device) -> str:
    """The name of this machine in results. Raises ValueError for an unusable ``ARCHBENCH_MACHINE``."""
    given = os.environ.get("ARCHBENCH_MACHINE")
    if given is not None:
        if not is_safe_name(given):
            raise ValueError(f"ARCHBENCH_MACHINE is {given!r}: use letters, digits and . _ + - only")
        return given
    if device == "cuda":
        count = len(host.gpus)
        return gpu_name(host.gpus[0].name) + (f"-x{count}" if count > 1 else "")
    return cpu_name(host)


def place(host: Host, device: Device) -> Place:
    """Where cells are measured on this host."""
    memory = host.gpus[0].memory_bytes if device == "cuda" else host.memory_bytes
    return Place(device, host.cpu.cores, memory)
