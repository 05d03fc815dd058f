"""The CPU: model, cores this process may use, instruction sets, caches.

Linux is read from ``/proc`` and ``/sys`` below a ``root``, so that recorded machines drive the tests; macOS from
``sysctl``. A hypervisor may hide the model: then the microarchitecture is told from the instruction sets.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import psutil

from archbench.hardware.cgroup import cpu_quota, read_text
from archbench.names import slugify

# flag in /proc/cpuinfo -> name on the board
_X86_ISA = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX INT8",
    "amx_fp16": "AMX FP16",
}
_ARM_ISA = {
    "neon": "NEON",  # 32-bit systems
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}
_MAC_ISA = {
    "arm.FEAT_DotProd": "dotprod",
    "arm.FEAT_BF16": "BF16",
    "arm.FEAT_I8MM": "i8mm",
    "arm.FEAT_SME": "SME",
    "avx2_0": "AVX2",
    "avx512f": "AVX-512",
}
_IMPLEMENTERS = {
    "0x41": "arm",
    "0x46": "fujitsu",
    "0x48": "hisilicon",
    "0x4e": "nvidia",
    "0x51": "qualcomm",
    "0x61": "apple",
    "0xc0": "ampere",
}
_ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd05": "cortex-a55",
    "0xd08": "cortex-a72",
    "0xd09": "cortex-a73",
    "0xd0b": "cortex-a76",
    "0xd41": "cortex-a78",
    "0xd42": "cortex-a78ae",
    "0xd0c": "neoverse-n1",
    "0xd40": "neoverse-v1",
    "0xd49": "neoverse-n2",
    "0xd4f": "neoverse-v2",
    "0xd84": "neoverse-v3",
}
_ZEN = {(23, 1): "zen1", (23, 49): "zen2", (25, 1): "zen3", (25, 17): "zen4", (25, 160): "zen4c", (26, 2): "zen5"}


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of CPU, as far as this process sees it."""

    model: str
    vendor: str  # "intel", "amd", "arm", "apple" ... or ""
    architecture: str  # platform.machine(): x86_64, aarch64, arm64
    microarchitecture: str = ""  # "sapphire-rapids", "zen4", "cortex-a76"; "" where it cannot be told
    cores: int  # CPUs this process may use: affinity and cgroup quota
    cores_total: int
    isa: tuple[str, ...] = ()
    cache_bytes: Mapping[int, int] = {}  # level -> bytes of one cache of that level
    last_level_bytes: int = 0  # all caches of the highest level together; 0 where none is reported


def usable_cores(root: Path = Path("/")) -> int:
    """CPUs this process may use: the smaller of its affinity and its cgroup's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    quota = cpu_quota(root)
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def caches(root: Path = Path("/")) -> tuple[dict[int, int], int]:
    """(level -> bytes of the largest data or unified cache, bytes of all last-level caches together), from sysfs.

    A machine with several sockets or chiplets has several last-level caches, and a copy that runs on all cores uses
    all of them. The second number is what "larger than the cache" has to mean there.
    """
    largest: dict[int, int] = {}
    distinct: dict[tuple[int, str], int] = {}
    for index in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*")):
        size = re.fullmatch(r"(\d+)([KM]?)", read_text(index / "size"))
        level = read_text(index / "level")
        if size and level.isdigit() and read_text(index / "type") != "Instruction":
            value = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[size[2]]
            largest[int(level)] = max(value, largest.get(int(level), 0))
            distinct[int(level), read_text(index / "shared_cpu_list") or index.parts[-3]] = value
    last = max(largest, default=0)
    return largest, sum(size for (level, _), size in distinct.items() if level == last)


def intel_microarchitecture(model: int, flags: set[str]) -> str:
    """The server generation its instruction sets allow; the model number decides only among those.

    A hypervisor may show any model number beside the true instruction sets, never the other way round.
    """
    if "amx_fp16" in flags:
        return "granite-rapids"
    if "amx_bf16" in flags:
        return "emerald-rapids" if model == 207 else "sapphire-rapids"
    if {"avx512_vbmi2", "avx512_bitalg"} <= flags:
        return "ice-lake"
    if "avx512f" in flags:
        if "avx512_bf16" in flags:
            return "cooper-lake"
        return "cascade-lake" if "avx512_vnni" in flags else "skylake-x"
    return {63: "haswell", 79: "broadwell", 86: "broadwell", 175: "sierra-forest"}.get(model, "")


def amd_microarchitecture(family: int, model: int, flags: set[str]) -> str:
    """Zen generation by family and model; by family and instruction sets for models not listed."""
    exact = _ZEN.get((family, model))
    if exact:
        return exact
    by_family = {23: "zen2" if model >= 0x30 else "zen1", 25: "zen4" if "avx512f" in flags else "zen3", 26: "zen5"}
    return by_family.get(family, "")


def _fields(cpuinfo: str) -> dict[str, list[str]]:
    """Every distinct value of each key of ``/proc/cpuinfo``, in order: chips may mix kinds of cores."""
    fields: dict[str, list[str]] = {}
    for line in cpuinfo.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if value and value not in fields.setdefault(key.lower(), []):
            fields[key.lower()].append(value)
    return fields


def linux_cpu(root: Path = Path("/"), architecture: str | None = None) -> Cpu:
    """Read ``/proc/cpuinfo`` and sysfs below ``root``."""
    text = read_text(root / "proc/cpuinfo")
    fields = _fields(text)

    def first(key: str, default: str = "") -> str:
        return fields.get(key, [default])[0]

    total = len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or psutil.cpu_count() or 1
    cache_bytes, last_level = caches(root)
    shown = re.fullmatch(r"(\d+) KB", first("cache size"))  # x86 guests without cache folders in sysfs
    machine = Cpu(
        model="unknown",
        vendor="",
        architecture=architecture or platform.machine(),
        cores=min(usable_cores(root), total),
        cores_total=total,
        cache_bytes=cache_bytes,
        last_level_bytes=last_level or (int(shown[1]) * 1024 if shown else 0),
    )
    if "vendor_id" in fields:
        flags = set(first("flags").split())
        vendor = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(first("vendor_id"), "")
        family, model = int(first("cpu family", "0")), int(first("model", "0"))
        kinds = {
            "intel": intel_microarchitecture(model, flags) if family == 6 else "",
            "amd": amd_microarchitecture(family, model, flags),
        }
        return msgspec.structs.replace(
            machine,
            model=first("model name", "unknown"),
            vendor=vendor,
            microarchitecture=kinds.get(vendor, ""),
            isa=tuple(name for flag, name in _X86_ISA.items() if flag in flags),
        )
    features = set(first("features").split())
    parts = [_ARM_PARTS[part] for part in fields.get("cpu part", []) if part in _ARM_PARTS]
    return msgspec.structs.replace(
        machine,
        model=first("model name") or " + ".join(part.replace("-", " ").title() for part in parts) or "unknown",
        vendor=_IMPLEMENTERS.get(first("cpu implementer"), ""),
        microarchitecture=parts[-1] if parts else "",  # the large cores come last
        isa=tuple(dict.fromkeys(name for flag, name in _ARM_ISA.items() if flag in features)),
    )


def sysctl(name: str) -> str:
    """One value of macOS's sysctl; empty where there is none."""
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def mac_cpu(ask: Callable[[str], str] = sysctl) -> Cpu:
    """A Mac's CPU, through ``sysctl``. The system-level cache of Apple's chips is not reported by any key."""
    model = ask("machdep.cpu.brand_string") or "unknown"
    total = int(ask("hw.ncpu") or psutil.cpu_count() or 1)
    apple = model.startswith("Apple")
    present = [name for key, name in _MAC_ISA.items() if ask(f"hw.optional.{key}") == "1"]
    keys = {1: "l1dcachesize", 2: "l2cachesize", 3: "l3cachesize"}
    sizes = {level: int(ask(f"hw.perflevel0.{key}") or ask(f"hw.{key}") or 0) for level, key in keys.items()}
    sizes = {level: size for level, size in sizes.items() if size}
    return Cpu(
        model=model,
        vendor="apple" if apple else "intel",
        architecture=platform.machine(),
        microarchitecture=slugify(model.removeprefix("Apple")) if apple else "",
        cores=total,
        cores_total=total,
        isa=("NEON", *present) if apple else tuple(present),
        cache_bytes=sizes,
        last_level_bytes=sizes[max(sizes)] if sizes else 0,
    )
