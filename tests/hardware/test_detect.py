"""Detection on recorded machines: names, instruction sets, limits, and what is never published."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import pytest

from archbench.hardware import detect as detection
from archbench.hardware.cpu import Cpu, cache_sizes, cgroup_quota, linux_cpu, mac_cpu, usable_cores
from archbench.hardware.detect import Host, cpu_name, default_device, detect, gpu_name, machine_name, place
from archbench.hardware.gpu import Gpu
from archbench.hardware.profiles import match, profiles
from archbench.names import is_safe_name

ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16 hypervisor

processor\t: 1
vendor_id\t: AuthenticAMD
"""
MASKED_XEON = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 167
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: avx2 avx512f avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8 hypervisor
"""
PI_5 = "".join(
    f"processor\t: {n}\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 atomics fphp asimdhp asimddp\n"
    "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
    for n in range(4)
)
PI_4 = PI_5.replace("0xd0b", "0xd08").replace(" asimdhp asimddp", "")


def record(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCHBENCH_MACHINE", raising=False)
    monkeypatch.delenv("ARCHBENCH_DEVICE", raising=False)


def recorded(
    root: Path, monkeypatch: pytest.MonkeyPatch, files: Mapping[str, str], architecture: str = "x86_64", cores: int = 99
) -> Host:
    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr("archbench.hardware.cpu.usable_cores", lambda root: cores)
    return detect(record(root, files))


def test_an_epyc_is_named_by_line_microarchitecture_and_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = recorded(tmp_path, monkeypatch, {"proc/cpuinfo": ZEN4, "proc/meminfo": "MemTotal: 16000000 kB\n"})
    assert machine_name(host, "cpu") == "amd-epyc-zen4-2c"
    assert host.cpu.isa == ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16")
    assert host.virtualization == "virtual machine"
    assert host.memory_bytes == 16_000_000 * 1024


def test_a_masked_xeon_is_told_from_its_instruction_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = recorded(tmp_path, monkeypatch, {"proc/cpuinfo": MASKED_XEON})
    assert machine_name(host, "cpu") == "intel-sapphire-rapids-1c"
    assert "AMX BF16" in host.cpu.isa


@pytest.mark.parametrize(
    ("model", "cpuinfo", "memory_kb", "name", "profile"),
    [
        ("Raspberry Pi 5 Model B Rev 1.0\0", PI_5, 8_245_000, "raspberry-pi-5-8gb", "raspberry-pi-5"),
        ("Raspberry Pi 4 Model B Rev 1.4\0", PI_4, 3_884_000, "raspberry-pi-4-4gb", "raspberry-pi-4"),
        ("NVIDIA Jetson Orin Nano Developer Kit", PI_5, 7_620_000, "jetson-orin-nano-7gb", "jetson-orin-nano"),
    ],
)
def test_a_board_is_named_by_board_and_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    cpuinfo: str,
    memory_kb: int,
    name: str,
    profile: str,
) -> None:
    files = {
        "proc/device-tree/model": model,
        "proc/cpuinfo": cpuinfo,
        "proc/meminfo": f"MemTotal: {memory_kb} kB\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    }
    host = recorded(tmp_path, monkeypatch, files, "aarch64", cores=4)
    assert machine_name(host, "cpu") == name
    assert host.facts()["board.governor"] == "performance"
    matched = match(host, "cpu")
    assert matched is not None
    assert matched.id == profile


def test_arm_instruction_sets_are_read(tmp_path: Path) -> None:
    assert linux_cpu(record(tmp_path, {"proc/cpuinfo": PI_5}), "aarch64").isa == ("NEON", "FP16", "dotprod")
    assert linux_cpu(record(tmp_path, {"proc/cpuinfo": PI_4}), "aarch64").isa == ("NEON",)


def test_an_apple_cpu_is_asked_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    answers = {
        "machdep.cpu.brand_string": "Apple M2 Pro",
        "hw.ncpu": "10",
        "hw.optional.arm.FEAT_DotProd": "1",
        "hw.optional.arm.FEAT_BF16": "1",
        "hw.perflevel0.l2cachesize": str(16 << 20),
    }
    cpu = mac_cpu(lambda name: answers.get(name, ""))
    assert cpu.isa == ("NEON", "dotprod", "BF16")
    assert cpu.cache_bytes == {2: 16 << 20}
    host = Host(cpu=cpu, memory_bytes=1 << 34)
    assert cpu_name(host) == "apple-m2-pro-10c"
    matched = match(host, "cpu")
    assert matched is not None
    assert matched.id == "apple-m-series"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-sxm"),
        ("NVIDIA H100 PCIe", "nvidia-h100-pcie"),
        ("NVIDIA H200", "nvidia-h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4"),
        ("NVIDIA L4", "nvidia-l4"),
        ("NVIDIA GeForce RTX 4090", "nvidia-rtx-4090"),
    ],
)
def test_a_gpu_is_named_by_its_product(name: str, expected: str) -> None:
    assert gpu_name(name) == expected


def gpu_host(*names: str) -> Host:
    cpu = Cpu(model="x", vendor="amd", architecture="x86_64", cores=4, cores_total=4)
    gpus = tuple(Gpu(name=n, uuid=f"GPU-{i}", memory_bytes=80 << 30, driver="580") for i, n in enumerate(names))
    return Host(cpu=cpu, memory_bytes=1 << 36, gpus=gpus, no_gpu_reason="" if gpus else "NVIDIA driver not found")


def test_the_device_is_the_gpu_where_there_is_one_and_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_device(gpu_host()) == "cpu"
    host = gpu_host("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert default_device(host) == "cuda"
    assert machine_name(host, "cuda") == "nvidia-h100-sxm-x2"
    assert place(host, "cuda").memory_bytes == 80 << 30
    monkeypatch.setenv("ARCHBENCH_DEVICE", "cpu")
    assert default_device(host) == "cpu"
    monkeypatch.setenv("ARCHBENCH_DEVICE", "cuda")
    with pytest.raises(ValueError, match="NVIDIA driver not found"):
        default_device(gpu_host())
    monkeypatch.setenv("ARCHBENCH_DEVICE", "tpu")
    with pytest.raises(ValueError, match="must be cpu or cuda"):
        default_device(host)


@pytest.mark.parametrize("bad", ["../x", "<script>", "", "a/b", ".hidden", "x" * 200])
def test_an_unusable_machine_name_is_refused(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("ARCHBENCH_MACHINE", bad)
    with pytest.raises(ValueError, match="ARCHBENCH_MACHINE"):
        machine_name(gpu_host(), "cpu")
    monkeypatch.setenv("ARCHBENCH_MACHINE", "my-box")
    assert machine_name(gpu_host(), "cpu") == "my-box"


def test_this_machine_is_detected_and_says_nothing_private() -> None:
    host = detect()
    facts = host.facts()
    assert is_safe_name(machine_name(host, default_device(host)))
    assert facts["cpu.cores"] >= 1
    text = " ".join(f"{key}={value}" for key, value in facts.items())
    assert "GPU-" not in text
    assert not any(value == platform.node() for value in facts.values())


def test_gpu_facts_leave_the_uuid_out() -> None:
    facts = gpu_host("NVIDIA L4").facts()
    assert facts["gpu.0.name"] == "NVIDIA L4"
    assert not any("uuid" in key or value == "GPU-0" for key, value in facts.items())


def test_the_cgroup_quota_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(tmp_path) == 8
    assert usable_cores(record(tmp_path, {"sys/fs/cgroup/cpu.max": "250000 100000"})) == 2
    assert cgroup_quota(record(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000"})) is None
    v1 = {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}
    (tmp_path / "sys/fs/cgroup/cpu.max").unlink()
    assert usable_cores(record(tmp_path, v1)) == 1


def test_caches_are_data_caches_by_level(tmp_path: Path) -> None:
    cache = "sys/devices/system/cpu/cpu0/cache"
    files = {}
    for i, (level, kind, size) in enumerate(
        [("1", "Data", "32K"), ("1", "Instruction", "64K"), ("2", "Unified", "1M"), ("3", "Unified", "32M")]
    ):
        files |= {f"{cache}/index{i}/level": level, f"{cache}/index{i}/type": kind, f"{cache}/index{i}/size": size}
    assert cache_sizes(record(tmp_path, files)) == {1: 32 << 10, 2: 1 << 20, 3: 32 << 20}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/class/dmi/id/product_name": "KVM"}, "kvm"),
        ({"sys/class/dmi/id/sys_vendor": "VMware, Inc."}, "vmware"),
        ({"sys/hypervisor/type": "xen"}, "xen"),
        ({"proc/cpuinfo": "flags\t: sse hypervisor\n"}, "virtual machine"),
        ({"run/.containerenv": ""}, "container"),
        ({}, "none"),
    ],
)
def test_virtualization_is_named(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    assert detection.virtualization(record(tmp_path, files)) == expected


def test_every_profile_is_complete_and_has_a_source() -> None:
    known = profiles()
    wanted = (
        "h100-sxm h200-sxm a100-sxm-80gb l4 rtx-4090 generic-x86-cpu raspberry-pi-4 raspberry-pi-5 jetson-orin-nano"
    )
    assert set(known) == {*wanted.split(), "apple-m-series"}
    for profile in known.values():
        assert profile.source.startswith("https://")
        figures = [profile.memory_bytes, profile.memory_bytes_per_s, profile.tdp_w, *profile.matrix_per_s.values()]
        assert all(figure > 0 for figure in figures if figure is not None)
        if profile.kind == "gpu":
            assert profile.memory_bytes_per_s
            assert profile.matrix_per_s["bf16"] > profile.matrix_per_s["fp32"]
