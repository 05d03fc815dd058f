"""Memory and energy meters, load, ceilings and the machine file."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import numpy as np
import pytest

from archbench.cells import Ceiling
from archbench.hardware import ceilings as ceiling_module
from archbench.hardware.asv_machine import write
from archbench.hardware.ceilings import buffer_bytes, ceilings
from archbench.hardware.detect import detect
from archbench.hardware.load import Watch
from archbench.hardware.meters import EnergyMeter, NoMeter, peak_host_bytes, rapl_meter
from archbench.hardware.report import machine_tables


@pytest.mark.parametrize("mebibytes", [16, 128])
def test_the_peak_of_a_call_is_what_it_touches_even_when_it_frees_it(mebibytes: int) -> None:
    def call() -> int:
        return int(np.ones(mebibytes << 20, dtype=np.uint8)[-1])

    for _ in range(2):  # the second time the allocator could hand out what it kept
        assert peak_host_bytes(call) == pytest.approx(mebibytes << 20, rel=0.1)


def test_without_the_kernels_mark_a_thread_samples(tmp_path: Path) -> None:
    def call() -> int:
        return sum(int(np.ones(64 << 20, dtype=np.uint8)[::4096].sum()) for _ in range(5))

    assert peak_host_bytes(call, root=tmp_path) == pytest.approx(64 << 20, rel=0.3)


def zone(root: Path, name: str, energy: str, domain: str = "package-0") -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(domain)
    (folder / "energy_uj").write_text(energy)
    (folder / "max_energy_range_uj").write_text("10000000")
    return folder


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "9000000"), zone(tmp_path, "intel-rapl:1", "1000000", "package-1")
    zone(tmp_path, "intel-rapl:0:0", "5", "core")
    meter = rapl_meter(tmp_path)
    assert isinstance(meter, EnergyMeter)
    with meter.measure() as reading:
        (first / "energy_uj").write_text("2000000")  # wrapped at 10 J: 3 J used
        (second / "energy_uj").write_text("1500000")
    assert reading.joules == pytest.approx(3.5)


def test_no_counter_is_a_reason_and_a_counter_that_runs_backwards_no_number(tmp_path: Path) -> None:
    assert rapl_meter(tmp_path) == NoMeter("no energy counter")
    zone(tmp_path, "intel-rapl:0", "")
    assert rapl_meter(tmp_path) == NoMeter("the RAPL energy counter cannot be read by this user")
    values = iter([[5.0], [3.0]])
    with EnergyMeter("x", lambda: next(values)).measure() as reading:
        pass
    assert reading.joules is None


def test_the_watch_sees_load_and_shares() -> None:
    watch = Watch(nvml="none")
    watch.start()
    sum(range(2_000_000))
    seen = watch.stop()
    assert 0 <= float(seen.get("other_cpu_fraction") or 0) <= 1
    assert "load1" in seen


def test_ceilings_are_measured_once_per_boot_and_stamped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host, asked = detect(), []

    def measured(*_: object) -> list[Ceiling]:
        asked.append(1)
        return [Ceiling("copy", 1e9, "B/s", threads=1)]

    monkeypatch.setattr(ceiling_module, "_cpu", measured)
    options = {"dtypes": ("fp32",), "threads": (1,), "cache_dir": tmp_path}
    first = ceilings(host, "cpu", **options)
    assert first[0].measured.startswith("20")
    assert ceilings(host, "cpu", **options) == first
    assert len(asked) == 1
    ceilings(host, "cpu", **options, refresh=True)
    next(tmp_path.glob("*.json")).write_text("{")
    ceilings(host, "cpu", **options)
    monkeypatch.setattr(ceiling_module, "boot_id", lambda: "another boot")
    ceilings(host, "cpu", **options)
    assert len(asked) == 4


def test_buffers_exceed_four_caches_but_never_a_quarter_of_the_free_memory() -> None:
    assert buffer_bytes(32 << 20, 64 << 30) > 4 * (32 << 20)
    assert buffer_bytes(1 << 20, 64 << 30) == 64 << 20
    assert buffer_bytes(480 << 20, 4 << 30) == 1 << 30


def test_rates_are_plausible_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the matrix rate is torch's")
    monkeypatch.setattr(ceiling_module, "buffer_bytes", lambda cache, available: 8 << 20)
    monkeypatch.setattr(ceiling_module, "MATRIX_SIZES", (256,))
    found = ceilings(detect(), "cpu", dtypes=("fp32", "fp64"), threads=(1,), cache_dir=tmp_path)
    assert {(c.name, c.dtype) for c in found} == {
        ("copy", None),
        ("read", None),
        ("matrix", "fp32"),
        ("matrix", "fp64"),
    }
    assert all(1e8 < c.value < 1e14 for c in found)


def test_the_machine_file_has_our_name_under_ours_and_asvs_key(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps({"other": {"machine": "other"}, "version": 1}))
    write(detect(), "my-box", path)
    written = json.loads(path.read_text())
    assert written["my-box"]["machine"] == written[platform.node()]["machine"] == "my-box"
    assert written["other"] == {"machine": "other"}
    assert all(isinstance(value, str) for value in written["my-box"].values())
    assert platform.node() not in written["my-box"].values()
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        write(detect(), "my-box", path)


def test_the_table_shows_ceilings_beside_the_datasheet() -> None:
    ceiling = Ceiling("matrix", 4e14, "op/s", dtype="bf16", datasheet=8e14)
    facts, measured = machine_tables(detect(), "my-box", [ceiling], None)
    assert facts.title == "my-box"
    assert list(measured.columns[5].cells) == ["50%"]
