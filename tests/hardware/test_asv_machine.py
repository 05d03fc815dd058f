"""asv's machine file: our entry, the alias, and everything that was there before."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

from archbench.hardware.asv_machine import machine_entry, write
from archbench.hardware.cpu import Cpu
from archbench.hardware.detect import Host
from archbench.hardware.gpu import Gpu


def test_the_file_has_our_name_under_ours_and_asvs_key(recorded: Callable[[str], Host], tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"other": {"machine": "other"}, "version": 1}))
    assert write(recorded("raspberry-pi-5"), "my-box", path) == path
    written = json.loads(path.read_text())
    assert written["my-box"]["machine"] == written[platform.node()]["machine"] == "my-box"
    assert written["other"] == {"machine": "other"}
    assert written["version"] == 1
    assert not list(tmp_path.glob("machine.json.*"))


def test_an_entry_is_text_without_the_host_name(recorded: Callable[[str], Host]) -> None:
    entry = machine_entry(recorded("raspberry-pi-5"), "my-box")
    assert entry["board"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert entry["num_cpu"] == "4"
    assert entry["ram"] == "8245000"
    assert all(isinstance(value, str) for value in entry.values())
    assert platform.node() not in entry.values()
    assert "gpu" not in entry


def test_a_gpu_and_its_driver_flow_into_results() -> None:
    cpu = Cpu(model="x", vendor="amd", architecture="x86_64", cores=4, cores_total=4)
    gpu = Gpu(name="NVIDIA L4", uuid="GPU-secret", card_uuid="GPU-secret", driver="580.1")
    entry = machine_entry(Host(cpu=cpu, memory_bytes=1 << 34, gpus=(gpu,)), "nvidia-l4")
    assert (entry["gpu"], entry["driver"]) == ("NVIDIA L4", "580.1")
    assert "GPU-secret" not in entry.values()


def test_asv_itself_finds_this_machine_without_asking(recorded: Callable[[str], Host], tmp_path: Path) -> None:
    machine = pytest.importorskip("asv.machine", reason="asv is not installed")
    path = write(recorded("epyc-zen4"), "amd-epyc-zen4-2c", tmp_path / "machine.json")
    loaded = machine.Machine.load(_path=str(path), interactive=False)
    assert loaded.machine == "amd-epyc-zen4-2c"
    loaded.save(str(tmp_path))  # what asv puts beside the results
    saved = (tmp_path / "amd-epyc-zen4-2c" / "machine.json").read_text()
    assert json.loads(saved)["machine"] == "amd-epyc-zen4-2c"
    assert json.dumps(platform.node()) not in saved


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 2}'])
def test_a_file_that_is_not_asvs_is_left_alone(recorded: Callable[[str], Host], tmp_path: Path, text: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="move it away"):
        write(recorded("epyc-zen4"), "my-box", path)
    assert path.read_text() == text
