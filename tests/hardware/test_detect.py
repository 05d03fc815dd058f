"""Names and devices of recorded machines, and what is never published."""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from archbench.hardware import detect as detection
from archbench.hardware.board import Board
from archbench.hardware.cpu import Cpu
from archbench.hardware.detect import (
    Host,
    board_name,
    cpu_name,
    default_device,
    detect,
    gpu_name,
    hardware_name,
    machine_name,
    place,
)
from archbench.hardware.gpu import Gpu
from archbench.names import is_safe_name

Record = Callable[[Mapping[str, str]], Path]
Recorded = Callable[[str], Host]


def gpu_host(*names: str, cuda_version: str = "13.0") -> Host:
    cpu = Cpu(model="x", vendor="amd", architecture="x86_64", cores=4, cores_total=4)
    gpus = tuple(
        Gpu(
            name=name,
            uuid=f"GPU-{i}",
            card_uuid=f"GPU-{i}",
            memory_bytes=80 << 30,
            driver="580",
            cuda_version=cuda_version,
        )
        for i, name in enumerate(names)
    )
    return Host(cpu=cpu, memory_bytes=1 << 36, gpus=gpus, no_gpu_reason="" if gpus else "NVIDIA driver not found")


@pytest.fixture
def torch_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("archbench.hardware.gpu.torch_cuda", lambda: "13.0")


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        ("epyc-zen4", "amd-epyc-zen4-2c"),
        ("masked-xeon", "intel-sapphire-rapids-1c"),
        ("raspberry-pi-4", "raspberry-pi-4-4gb"),
        ("raspberry-pi-5", "raspberry-pi-5-8gb"),
        ("jetson-orin-nano", "jetson-orin-nano-8gb"),
    ],
)
def test_a_recorded_machine_is_named_by_its_hardware(recorded: Recorded, machine: str, name: str) -> None:
    host = recorded(machine)
    assert machine_name(host, "cpu") == name
    assert is_safe_name(name)


def test_facts_of_a_recorded_machine(recorded: Recorded) -> None:
    facts = recorded("epyc-zen4").facts()
    assert facts["cpu.model"] == "AMD EPYC 9R14"
    assert facts["cpu.isa"] == "AVX2, AVX-512, AVX-512 VNNI, AVX-512 BF16"
    assert facts["memory.bytes"] == 16_000_000 * 1024
    assert facts["virtualization"] == "kvm"
    assert facts["os.name"] == "Ubuntu 24.04.1 LTS"
    assert facts["gpu"] == "recorded machine"
    assert "board.model" not in facts


def test_facts_of_a_board(recorded: Recorded) -> None:
    facts = recorded("raspberry-pi-5").facts()
    assert facts["board.model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["board.governor"] == "performance"


@pytest.mark.parametrize(
    ("vendor", "model", "microarchitecture", "name"),
    [
        ("intel", "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", "sapphire-rapids", "intel-sapphire-rapids-8c"),
        ("intel", "13th Gen Intel(R) Core(TM) i7-13700K", "", "intel-core-i7-13700k-8c"),
        ("intel", "Intel(R) Core(TM) i7-11700K @ 3.60GHz", "ice-lake", "intel-core-i7-11700k-8c"),
        ("intel", "Intel(R) N100", "", "intel-n100-8c"),
        ("amd", "AMD EPYC-Milan Processor", "zen3", "amd-epyc-zen3-8c"),
        ("amd", "AMD Ryzen 9 7950X 16-Core Processor", "zen4", "amd-ryzen-9-7950x-8c"),
        ("amd", "AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "zen4", "amd-ryzen-7-7840u-8c"),
        ("arm", "Neoverse V1", "neoverse-v1", "arm-neoverse-v1-8c"),
        ("apple", "Apple M2 Pro", "m2-pro", "apple-m2-pro-8c"),
        ("", "unknown", "", "x86-64-unknown-8c"),
    ],
)
def test_a_cpu_is_named_by_vendor_kind_and_cores(vendor: str, model: str, microarchitecture: str, name: str) -> None:
    cpu = Cpu(
        model=model,
        vendor=vendor,
        architecture="x86_64",
        microarchitecture=microarchitecture,
        cores=8,
        cores_total=16,
    )
    assert cpu_name(Host(cpu=cpu, memory_bytes=1 << 34)) == name


@pytest.mark.parametrize(
    ("kilobytes", "name"),
    [(430_000, "512mb"), (930_000, "1gb"), (1_900_000, "2gb"), (16_300_000, "16gb"), (200 << 20, "200gb")],
)
def test_a_board_has_the_memory_it_was_sold_with(kilobytes: int, name: str) -> None:
    assert board_name(Board(model="Raspberry Pi 5"), kilobytes * 1024) == f"raspberry-pi-5-{name}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-sxm"),
        ("NVIDIA H100 PCIe", "nvidia-h100-pcie"),
        ("NVIDIA H100 NVL", "nvidia-h100-nvl"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "nvidia-h100-sxm-mig-1g-10gb"),
        ("NVIDIA H200", "nvidia-h200-sxm"),
        ("NVIDIA H200 NVL", "nvidia-h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("NVIDIA A100-SXM4-40GB", "nvidia-a100-sxm4-40gb"),
        ("NVIDIA L4", "nvidia-l4"),
        ("NVIDIA GeForce RTX 4090", "nvidia-rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "nvidia-rtx-4090-laptop-gpu"),
    ],
)
def test_a_gpu_is_named_by_its_product(name: str, expected: str) -> None:
    assert gpu_name(name) == expected


def test_several_visible_gpus_are_counted_and_the_profile_name_is_not() -> None:
    host = gpu_host("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3")
    assert machine_name(host, "cuda") == "nvidia-h100-sxm-x2"
    assert hardware_name(host, "cuda") == "nvidia-h100-sxm"


def test_the_gpu_of_an_nvidia_board_goes_by_the_board_and_shares_its_memory(recorded: Recorded) -> None:
    host = recorded("jetson-orin-nano")
    gpu = Gpu(name="Orin (nvgpu)", uuid="x", card_uuid="x", driver="540.4")
    with_gpu = Host(cpu=host.cpu, memory_bytes=host.memory_bytes, board=host.board, gpus=(gpu,))
    assert machine_name(with_gpu, "cuda") == "jetson-orin-nano-8gb"
    assert place(with_gpu, "cuda").memory_bytes == host.memory_bytes


@pytest.mark.usefixtures("torch_with_cuda")
def test_the_device_is_the_gpu_where_there_is_one_and_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    host = gpu_host("NVIDIA H100 80GB HBM3")
    assert default_device(gpu_host()) == "cpu"
    assert default_device(host) == "cuda"
    assert place(host, "cuda").memory_bytes == 80 << 30
    monkeypatch.setenv("ARCHBENCH_DEVICE", "cpu")
    assert default_device(host) == "cpu"
    monkeypatch.setenv("ARCHBENCH_DEVICE", "cuda")
    assert default_device(host) == "cuda"
    with pytest.raises(ValueError, match="NVIDIA driver not found"):
        default_device(gpu_host())
    monkeypatch.setenv("ARCHBENCH_DEVICE", "tpu")
    with pytest.raises(ValueError, match="must be cpu or cuda"):
        default_device(host)


@pytest.mark.parametrize(
    ("built", "reason"),
    [
        (None, "torch is not installed"),
        ("", "this build of torch has no CUDA"),
        ("14.1", "the driver runs CUDA 13.0, torch needs 14.1"),
    ],
)
def test_a_gpu_torch_cannot_use_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, built: str | None, reason: str
) -> None:
    monkeypatch.setattr("archbench.hardware.gpu.torch_cuda", lambda: built)
    assert default_device(gpu_host("NVIDIA L4")) == "cpu"
    monkeypatch.setenv("ARCHBENCH_DEVICE", "cuda")
    with pytest.raises(ValueError, match=re.escape(reason)):
        default_device(gpu_host("NVIDIA L4"))


@pytest.mark.parametrize("bad", ["../x", "<script>", "", "a/b", ".hidden", "x" * 200])
def test_an_unusable_machine_name_is_refused(monkeypatch: pytest.MonkeyPatch, bad: str) -> None:
    monkeypatch.setenv("ARCHBENCH_MACHINE", bad)
    with pytest.raises(ValueError, match="ARCHBENCH_MACHINE"):
        machine_name(gpu_host(), "cpu")


def test_a_given_machine_name_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCHBENCH_MACHINE", "my-box")
    assert machine_name(gpu_host("NVIDIA L4"), "cuda") == "my-box"


def test_a_container_keeps_its_boards_name_and_gets_its_own_memory(record: Record, recorded: Recorded) -> None:
    record({"sys/fs/cgroup/memory.max": str(1 << 30)})
    host = recorded("raspberry-pi-5")
    assert machine_name(host, "cpu") == "raspberry-pi-5-8gb"
    assert place(host, "cpu").memory_bytes == 1 << 30
    assert host.facts()["memory.limit_bytes"] == 1 << 30


def test_this_machine_is_detected_and_says_nothing_private() -> None:
    host = detect()
    facts = host.facts()
    assert is_safe_name(machine_name(host, default_device(host)))
    assert 1 <= host.cpu.cores <= host.cpu.cores_total
    assert facts["memory.bytes"] == host.memory_bytes > 1 << 28
    text = " ".join(f"{key}={value}" for key, value in facts.items())
    assert "GPU-" not in text
    assert not any(value == platform.node() for value in facts.values())


def test_gpu_facts_leave_the_uuid_out() -> None:
    facts = gpu_host("NVIDIA L4").facts()
    assert facts["gpu.0.name"] == "NVIDIA L4"
    assert facts["gpu.0.memory_bytes"] == 80 << 30
    assert not any("uuid" in key or value == "GPU-0" for key, value in facts.items())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sys/class/dmi/id/product_name": "KVM"}, "kvm"),
        ({"sys/class/dmi/id/sys_vendor": "VMware, Inc."}, "vmware"),
        ({"sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc kvm-clock \n"}, "kvm"),
        ({"sys/devices/system/clocksource/clocksource0/available_clocksource": "tsc hpet acpi_pm \n"}, "none"),
        ({"sys/hypervisor/type": "xen"}, "xen"),
        ({"proc/cpuinfo": "flags\t: sse hypervisor\n"}, "virtual machine"),
        ({"proc/device-tree/model": "linux,dummy-virt\0"}, "virtual machine"),
        ({"run/.containerenv": ""}, "container"),
        ({}, "none"),
    ],
)
def test_virtualization_is_named(record: Record, files: dict[str, str], expected: str) -> None:
    assert detection.virtualization(record(files)) == expected
