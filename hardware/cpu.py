"""The CPU and memory: model, cores this process may use, instruction sets, caches.

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
}
_ARM_ISA = {
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "BF16",
    "sve": "SVE",
    "sve2": "SVE2",
}
_ARM_PARTS = {
    "0xd03": "cortex-a53",
    "0xd08": "cortex-a72",
    "0xd0b": "cortex-a76",
    "0xd40": "neoverse-v1",
    "0xd42": "cortex-a78ae",
    "0xd0c": "neoverse-n1",
    "0xd49": "neoverse-n2",
    "0xd4f": "neoverse-v2",
}
_ZEN = {(23, 1): "zen1", (23, 49): "zen2", (25, 1): "zen3", (25, 17): "zen4", (25, 160): "zen4c", (26, 2): "zen5"}


class Cpu(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of CPU, as far as this process sees it."""

    model: str
    vendor: str  # "intel", "amd", "arm", "apple" or ""
    architecture: str  # platform.machine(): x86_64, aarch64, arm64
    microarchitecture: str = ""  # "sapphire-rapids", "zen4", "cortex-a76"; "" where it cannot be told
    cores: int  # CPUs this process may use: affinity and cgroup quota
    cores_total: int
    isa: tuple[str, ...] = ()
    cache_bytes: Mapping[int, int] = {}  # level -> bytes of one cache of that level


def read_text(path: Path) -> str:
    """A small system file's text without trailing NUL or newline; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def cgroup_quota(root: Path = Path("/")) -> float | None:
    """CPUs the cgroup allows (v2, then v1), or None where there is no limit."""
    quota, _, period = read_text(root / "sys/fs/cgroup/cpu.max").partition(" ")
    if not quota:
        quota = read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
        period = read_text(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.isdigit() and period.isdigit() and int(period):
        return int(quota) / int(period)
    return None


def usable_cores(root: Path = Path("/")) -> int:
    """CPUs this process may use: the smaller of its affinity and its cgroup's quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    quota = cgroup_quota(root)
    return max(1, affinity if quota is None else min(affinity, int(quota)))


def cache_sizes(root: Path = Path("/")) -> dict[int, int]:
    """Bytes of the largest data or unified cache per level, from sysfs."""
    found: dict[int, int] = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        size = re.fullmatch(r"(\d+)([KM]?)", read_text(index / "size"))
        level = read_text(index / "level")
        if size and level.isdigit() and read_text(index / "type") != "Instruction":
            value = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20}[size[2]]
            found[int(level)] = max(value, found.get(int(level), 0))
    return found


def x86_microarchitecture(vendor: str, family: int, model: int, flags: set[str]) -> str:
    """From family and model for AMD; from the instruction sets for Intel servers, whose model a hypervisor may mask."""
    if vendor == "amd":
        exact = _ZEN.get((family, model))
        if exact:
            return exact
        return {23: "zen2" if model >= 0x30 else "zen1", 25: "zen4" if "avx512f" in flags else "zen3", 26: "zen5"}.get(
            family, ""
        )
    if "amx_fp16" in flags:
        return "granite-rapids"
    if "amx_bf16" in flags:
        return "sapphire-rapids"
    if "avx512_vbmi2" in flags and "avx512_bitalg" in flags:
        return "ice-lake"
    if "avx512f" in flags:
        return "cascade-lake" if "avx512_vnni" in flags else "skylake-x"
    return "avx2" if "avx2" in flags else ""


def linux_cpu(root: Path = Path("/"), architecture: str | None = None) -> Cpu:
    """Read ``/proc/cpuinfo`` and sysfs below ``root``."""
    text = read_text(root / "proc/cpuinfo")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    total = len(re.findall(r"^processor\s*:", text, re.MULTILINE)) or psutil.cpu_count() or 1
    machine = Cpu(
        model="unknown",
        vendor="",
        architecture=architecture or platform.machine(),
        cores=min(usable_cores(root), total),
        cores_total=total,
        cache_bytes=cache_sizes(root),
    )
    if "vendor_id" in fields:
        flags = set(fields.get("flags", "").split())
        vendor = {"GenuineIntel": "intel", "AuthenticAMD": "amd"}.get(fields["vendor_id"], "")
        return msgspec.structs.replace(
            machine,
            model=fields.get("model name", "unknown"),
            vendor=vendor,
            microarchitecture=x86_microarchitecture(
                vendor, int(fields.get("cpu family", "0")), int(fields.get("model", "0")), flags
            ),
            isa=tuple(name for flag, name in _X86_ISA.items() if flag in flags),
        )
    features = set(fields.get("features", "").split())
    part = _ARM_PARTS.get(fields.get("cpu part", ""), "")
    return msgspec.structs.replace(
        machine,
        model=fields.get("model name") or part.replace("-", " ").title() or "unknown",
        vendor="arm" if fields.get("cpu implementer") == "0x41" else "",
        microarchitecture=part,
        isa=tuple(name for flag, name in _ARM_ISA.items() if flag in features),
    )


def sysctl(name: str) -> str:
    """One value of macOS's sysctl; empty where there is none."""
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def mac_cpu(ask: Callable[[str], str] = sysctl) -> Cpu:
    """Apple's CPUs, through ``sysctl``."""
    model = ask("machdep.cpu.brand_string") or "unknown"
    total = int(ask("hw.ncpu") or psutil.cpu_count() or 1)
    apple = model.startswith("Apple")
    features = {"FEAT_DotProd": "dotprod", "FEAT_BF16": "BF16", "FEAT_I8MM": "i8mm"}
    present = [name for key, name in features.items() if ask(f"hw.optional.arm.{key}") == "1"]
    keys = {1: "l1dcachesize", 2: "l2cachesize"}
    caches = {level: int(ask(f"hw.perflevel0.{key}") or ask(f"hw.{key}") or 0) for level, key in keys.items()}
    return Cpu(
        model=model,
        vendor="apple" if apple else "intel",
        architecture=platform.machine(),
        microarchitecture=slugify(model.removeprefix("Apple")) if apple else "",
        cores=total,
        cores_total=total,
        isa=("NEON", *present) if apple else (),
        cache_bytes={level: size for level, size in caches.items() if size},
    )
