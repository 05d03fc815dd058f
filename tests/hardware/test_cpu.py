"""CPUs of recorded machines: instruction sets, microarchitectures, caches."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from archbench.hardware.cpu import amd_microarchitecture, caches, intel_microarchitecture, linux_cpu, mac_cpu
from archbench.hardware.detect import Host

Record = Callable[[Mapping[str, str]], Path]
SERVER = {"avx2", "avx512f", "avx512_vnni", "avx512_vbmi2", "avx512_bitalg", "avx512_bf16"}


@pytest.mark.parametrize(
    ("model", "flags", "expected"),
    [
        (143, SERVER | {"amx_bf16"}, "sapphire-rapids"),
        (207, SERVER | {"amx_bf16"}, "emerald-rapids"),
        (167, SERVER | {"amx_bf16"}, "sapphire-rapids"),  # masked
        (173, SERVER | {"amx_bf16", "amx_fp16"}, "granite-rapids"),
        (106, SERVER - {"avx512_bf16"}, "ice-lake"),
        (85, {"avx512f", "avx512_vnni", "avx512_bf16"}, "cooper-lake"),
        (85, {"avx512f", "avx512_vnni"}, "cascade-lake"),
        (85, {"avx512f"}, "skylake-x"),
        (143, {"avx2"}, ""),  # a model number without the instruction sets that belong to it proves nothing
        (79, {"avx2"}, "broadwell"),
    ],
)
def test_an_intel_generation_is_told_by_its_instruction_sets(model: int, flags: set[str], expected: str) -> None:
    assert intel_microarchitecture(model, flags) == expected


@pytest.mark.parametrize(
    ("family", "model", "flags", "expected"),
    [
        (25, 17, {"avx512f"}, "zen4"),
        (25, 160, {"avx512f"}, "zen4c"),
        (25, 97, {"avx512f"}, "zen4"),
        (25, 33, set(), "zen3"),
        (23, 49, set(), "zen2"),
        (23, 8, set(), "zen1"),
        (26, 36, {"avx512f"}, "zen5"),
        (21, 2, set(), ""),
    ],
)
def test_a_zen_generation_is_told_by_family_and_model(family: int, model: int, flags: set[str], expected: str) -> None:
    assert amd_microarchitecture(family, model, flags) == expected


@pytest.mark.parametrize(
    ("machine", "isa", "microarchitecture"),
    [
        ("epyc-zen4", ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16"), "zen4"),
        ("raspberry-pi-4", ("NEON",), "cortex-a72"),
        ("raspberry-pi-5", ("NEON", "FP16", "dotprod"), "cortex-a76"),
        ("jetson-orin-nano", ("NEON", "FP16", "dotprod"), "cortex-a78ae"),
    ],
)
def test_instruction_sets_are_named(
    recorded: Callable[[str], Host], machine: str, isa: tuple[str, ...], microarchitecture: str
) -> None:
    cpu = recorded(machine).cpu
    assert cpu.isa == isa
    assert cpu.microarchitecture == microarchitecture


def test_a_chip_of_two_kinds_of_cores_names_both_and_goes_by_the_large_one(record: Record) -> None:
    text = "".join(
        f"processor\t: {n}\nFeatures\t: asimd\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"
        for n, part in enumerate(["0xd05", "0xd05", "0xd0b"])
    )
    cpu = linux_cpu(record({"proc/cpuinfo": text}), "aarch64")
    assert (cpu.model, cpu.microarchitecture, cpu.cores_total) == ("Cortex A55 + Cortex A76", "cortex-a76", 3)


def test_an_unknown_arm_chip_still_has_its_maker(record: Record) -> None:
    text = "processor\t: 0\nFeatures\t: asimd\nCPU implementer\t: 0xc0\nCPU part\t: 0xfff\n"
    cpu = linux_cpu(record({"proc/cpuinfo": text}), "aarch64")
    assert (cpu.model, cpu.vendor, cpu.microarchitecture) == ("unknown", "ampere", "")


def test_caches_are_data_caches_and_the_last_level_is_counted_over_the_chip(record: Record) -> None:
    files: dict[str, str] = {}
    for cpu in range(4):
        levels = [
            ("1", "Data", "32K", f"{cpu}"),
            ("1", "Instruction", "64K", f"{cpu}"),
            ("2", "Unified", "1M", f"{cpu}"),
        ]
        levels.append(("3", "Unified", "32M", "0-1" if cpu < 2 else "2-3"))  # two chiplets
        for i, (level, kind, size, shared) in enumerate(levels):
            folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index{i}"
            files |= {f"{folder}/level": level, f"{folder}/type": kind, f"{folder}/size": size}
            files[f"{folder}/shared_cpu_list"] = shared
    assert caches(record(files)) == ({1: 32 << 10, 2: 1 << 20, 3: 32 << 20}, 64 << 20)


def test_without_cache_folders_the_size_in_cpuinfo_counts(record: Record) -> None:
    text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncache size\t: 491520 KB\n"
    cpu = linux_cpu(record({"proc/cpuinfo": text}), "x86_64")
    assert (cpu.cache_bytes, cpu.last_level_bytes) == ({}, 480 << 20)


def test_an_apple_cpu_is_asked_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    answers = {
        "machdep.cpu.brand_string": "Apple M2 Pro",
        "hw.ncpu": "10",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_BF16": "1",
        "hw.optional.arm.FEAT_SME": "0",
        "hw.perflevel0.l2cachesize": str(16 << 20),
    }
    cpu = mac_cpu(lambda name: answers.get(name, ""))
    assert (cpu.vendor, cpu.microarchitecture, cpu.cores) == ("apple", "m2-pro", 10)
    assert cpu.isa == ("NEON", "dotprod", "BF16")
    assert (cpu.cache_bytes, cpu.last_level_bytes) == ({2: 16 << 20}, 16 << 20)


def test_an_intel_mac_has_no_neon() -> None:
    answers = {"machdep.cpu.brand_string": "Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "hw.optional.avx2_0": "1"}
    cpu = mac_cpu(lambda name: answers.get(name, ""))
    assert (cpu.vendor, cpu.isa) == ("intel", ("AVX2",))
