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
from archbench.hardware.cgroup import memory_limit, read_text
from archbench.hardware.cpu import Cpu, linux_cpu, mac_cpu
from archbench.hardware.gpu import Gpu, detect_gpus, why_torch_cannot
from archbench.hardware.memory import in_words, page_bytes, swaps
from archbench.names import is_safe_name, slugify
from archbench.track import Device, Place

GIB = 1 << 30
# Boards show a little less memory than is fitted: the firmware keeps some. The next size that is sold is the true one.
_SOLD_GIB = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_GPU_FACTS = (
    "name",
    "memory_bytes",
    "driver",
    "cuda_version",
    "power_limit_w",
    "clock_max_hz",
    "memory_clock_max_hz",
    "capability",
)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """Everything detected about a machine."""

    cpu: Cpu
    memory_bytes: int  # fitted, as the kernel shows it
    memory_limit_bytes: int | None = None  # what the control group allows, where that is less
    page_bytes: int | None = None
    swap: str = ""  # kinds and sizes: "zram 2.00 GiB"
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
            "memory.limit_bytes": self.memory_limit_bytes,
            "memory.page_bytes": self.page_bytes,
            "memory.swap": self.swap,
            "virtualization": self.virtualization,
            "os.name": self.os_name,
            "os.kernel": self.kernel,
        }
        for level, size in sorted(self.cpu.cache_bytes.items()):
            facts[f"cpu.cache.l{level}_bytes"] = size
        facts["cpu.cache.last_level_bytes"] = self.cpu.last_level_bytes or None
        for i, gpu in enumerate(self.gpus):
            facts |= {f"gpu.{i}.{key}": getattr(gpu, key) for key in _GPU_FACTS}
        if not self.gpus:
            facts["gpu"] = self.no_gpu_reason
        if self.board:
            facts |= {f"board.{key}": value for key, value in msgspec.structs.asdict(self.board).items()}
        return {key: value for key, value in facts.items() if value not in ("", None)}


def virtualization(root: Path = Path("/")) -> str:
    """The hypervisor or container kind, or "none": DMI product, Xen, clock sources, CPU flag, container marks."""
    product = read_text(root / "sys/class/dmi/id/product_name") + " " + read_text(root / "sys/class/dmi/id/sys_vendor")
    clocks = read_text(root / "sys/devices/system/clocksource/clocksource0/available_clocksource")
    for text, mark, name in (
        (product, "KVM", "kvm"),
        (product, "QEMU", "kvm"),
        (product, "VMware", "vmware"),
        (product, "VirtualBox", "virtualbox"),
        (clocks, "kvm-clock", "kvm"),
        (clocks, "hyperv", "hyper-v"),
    ):
        if mark in text:
            return name
    hypervisor = read_text(root / "sys/hypervisor/type")
    if hypervisor:
        return hypervisor
    arm_guest = read_text(root / "proc/device-tree/model").startswith("linux,dummy-virt")
    if arm_guest or re.search(r"^flags\s*:.*\bhypervisor\b", read_text(root / "proc/cpuinfo"), re.MULTILINE):
        return "virtual machine"
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists():
        return "container"
    return "none"


def detect(root: Path = Path("/")) -> Host:
    """Look at this machine (or at a recorded one below ``root``)."""
    recorded = root != Path("/")
    gpus = detect_gpus("recorded machine" if recorded else None)
    shown = re.search(r"MemTotal:\s*(\d+) kB", read_text(root / "proc/meminfo"))
    memory = int(shown[1]) * 1024 if shown else psutil.virtual_memory().total
    limit = memory_limit(root)
    release = re.search(r'^PRETTY_NAME="?([^"\n]*)', read_text(root / "etc/os-release"), re.MULTILINE)
    return Host(
        cpu=mac_cpu() if sys.platform == "darwin" and not recorded else linux_cpu(root),
        memory_bytes=memory,
        memory_limit_bytes=limit if limit is not None and limit < memory else None,
        page_bytes=page_bytes(root),
        swap=in_words(swaps(root)),
        gpus=gpus.visible,
        no_gpu_reason=gpus.reason,
        board=detect_board(root),
        virtualization=virtualization(root),
        os_name=release[1] if release else platform.platform(terse=True),
        kernel=re.split(r"[^0-9.]", platform.release())[0],  # the numbers: suffixes name clouds and companies
    )


def why_not_cuda(host: Host) -> str:
    """Why this host's GPU is not measured; "" where it can be."""
    return why_torch_cannot(host.gpus[0]) if host.gpus else host.no_gpu_reason


def default_device(host: Host) -> Device:
    """The device this machine measures: a GPU torch can use, else the CPU; ``ARCHBENCH_DEVICE`` decides otherwise.

    Raises ValueError for a value that is neither ``cpu`` nor ``cuda``, and for ``cuda`` where no GPU can be used.
    """
    wanted = os.environ.get("ARCHBENCH_DEVICE", "")
    if wanted == "cpu":
        return "cpu"
    if wanted not in ("", "cuda"):
        raise ValueError(f"ARCHBENCH_DEVICE is {wanted!r}; it must be cpu or cuda, or not be set")
    obstacle = why_not_cuda(host)
    if wanted == "cuda" and obstacle:
        raise ValueError(f"ARCHBENCH_DEVICE is cuda, but there is no GPU to use: {obstacle}")
    return "cpu" if obstacle else "cuda"


def gpu_name(name: str) -> str:
    """``nvidia-h100-sxm`` from "NVIDIA H100 80GB HBM3".

    The H100 and H200 on SXM boards do not say so; their other forms ("PCIe", "NVL") do. All others keep their product
    name with the memory size, because cards of one name were sold with different memories.
    """
    product, _, instance = name.partition(" MIG ")
    text = product.removeprefix("NVIDIA ").removeprefix("GeForce ")
    plain = re.fullmatch(r"(H100)(?: 80GB)?(?: HBM\w+)?|(H200)(?: 141GB)?(?: HBM\w+)?", text)
    if plain:
        text = f"{plain[1] or plain[2]} SXM"
    return "nvidia-" + slugify(f"{text} mig {instance}" if instance else text)


def board_name(board: Board, memory_bytes: int) -> str:
    """``raspberry-pi-5-8gb``: family and fitted memory."""
    if memory_bytes <= GIB // 2:
        return f"{board.family}-512mb"
    size = next((size for size in _SOLD_GIB if memory_bytes <= size * GIB), round(memory_bytes / GIB))
    return f"{board.family}-{size}gb"


def cpu_name(host: Host) -> str:
    """``amd-epyc-zen4-2c``: vendor, line, microarchitecture, cores; boards are called by board and memory.

    Desktop lines carry the exact model instead (``amd-ryzen-9-7950x-32c``): nobody hides it, and one generation of
    them spans a factor of four.
    """
    if host.board:
        return board_name(host.board, host.memory_bytes)
    cpu = host.cpu
    lines = ("epyc", "ryzen", "xeon", "core")
    line = next((word for word in lines if re.search(rf"\b{word}\b", cpu.model.lower())), "")
    noise = r"\((?:R|TM|C)\)|@.*|\bw(?:ith|/) .*|\b(?:CPU|Processor|\d+-Core|\d+th Gen)\b"
    exact = slugify(re.sub(noise, " ", cpu.model, flags=re.IGNORECASE))[:60].removeprefix(f"{cpu.vendor}-")
    if line in ("ryzen", "core") or not cpu.microarchitecture:
        parts = [cpu.vendor or slugify(cpu.architecture), exact]
    elif cpu.vendor == "intel" and line == "xeon":
        parts = [cpu.vendor, cpu.microarchitecture]  # "xeon" says nothing a server microarchitecture does not
    else:
        parts = [cpu.vendor, line, cpu.microarchitecture]
    return "-".join([*filter(None, parts), f"{cpu.cores}c"])


def hardware_name(host: Host, device: Device) -> str:
    """The name of the measured hardware, by which profiles match. The GPU of an NVIDIA board goes by its board."""
    if device == "cuda" and not (host.board and host.board.model.startswith("NVIDIA")):
        return gpu_name(host.gpus[0].name)
    return cpu_name(host)


def machine_name(host: Host, device: Device) -> str:
    """The name of this machine in results. Raises ValueError for an unusable ``ARCHBENCH_MACHINE``."""
    given = os.environ.get("ARCHBENCH_MACHINE")
    if given is not None:
        if not is_safe_name(given):
            raise ValueError(f"ARCHBENCH_MACHINE is {given!r}: use letters, digits and . _ + - only")
        return given
    count = len(host.gpus) if device == "cuda" else 1
    return hardware_name(host, device) + (f"-x{count}" if count > 1 else "")


def place(host: Host, device: Device) -> Place:
    """Where cells are measured on this host."""
    memory = host.memory_limit_bytes or host.memory_bytes
    if device == "cuda":
        memory = host.gpus[0].memory_bytes or memory  # an integrated GPU uses the host's
    return Place(device, host.cpu.cores, memory)
