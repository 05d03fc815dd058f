"""Memory and energy meters: what they see, and that they never make a number up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import raspberry
from archbench.hardware.meters import (
    EnergyMeter,
    NoMeter,
    PowerMeter,
    energy_meter,
    integral,
    nvml_meter,
    peak_device_bytes,
    peak_host_bytes,
    pmic_meter,
    rapl_meter,
)
from archbench.harness import energy

Make = Callable[..., Any]
Record = Callable[[Mapping[str, str]], Path]


@pytest.mark.parametrize("mebibytes", [16, 128])
def test_the_peak_of_a_call_is_what_it_touches_even_when_it_frees_it(mebibytes: int) -> None:
    def call() -> int:
        return int(np.ones(mebibytes << 20, dtype=np.uint8)[-1])

    for _ in range(2):  # the second time the allocator could hand out what it kept
        assert peak_host_bytes(call) == pytest.approx(mebibytes << 20, rel=0.1)


def test_the_result_of_a_call_counts() -> None:
    assert peak_host_bytes(lambda: np.ones(32 << 20, dtype=np.uint8)) == pytest.approx(32 << 20, rel=0.1)


def hold_64_mebibytes() -> int:
    return sum(int(np.ones(64 << 20, dtype=np.uint8)[::4096].sum()) for _ in range(5))


def test_without_the_kernels_mark_a_thread_samples(tmp_path: Path) -> None:
    assert peak_host_bytes(hold_64_mebibytes, root=tmp_path) == pytest.approx(64 << 20, rel=0.3)


def test_a_kernel_without_a_high_water_mark_is_sampled_too(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/clear_refs").touch()
    (tmp_path / "proc/self/status").write_text("Name:\tpython\nVmRSS:\t   1024 kB\n")
    assert peak_host_bytes(hold_64_mebibytes, root=tmp_path) == pytest.approx(64 << 20, rel=0.3)


def test_the_peak_on_a_device_is_above_what_was_held_before(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="device memory is counted by torch's allocator")
    said: list[str] = []
    fake = SimpleNamespace(
        synchronize=lambda: said.append("synchronize"),
        reset_peak_memory_stats=lambda: said.append("reset"),
        memory_allocated=lambda: 100,
        max_memory_allocated=lambda: 350,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    assert peak_device_bytes(lambda: said.append("call")) == 250
    assert said == ["synchronize", "reset", "call", "synchronize"]  # a launch is not over when its call returns


def zone(root: Path, name: str, energy: str, domain: str = "package-0", wraps_at: str = "10000000") -> Path:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(domain)
    (folder / "energy_uj").write_text(energy)
    (folder / "max_energy_range_uj").write_text(wraps_at)
    return folder


def test_rapl_adds_packages_and_survives_a_wrap(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "9000000"), zone(tmp_path, "intel-rapl:1", "1000000", "package-1")
    zone(tmp_path, "intel-rapl:0:0", "5", "core")
    zone(tmp_path, "intel-rapl:2", "5", "psys")
    meter = energy_meter("cpu", tmp_path)
    assert isinstance(meter, EnergyMeter)
    assert meter.trust == "measured"
    with meter.measure() as reading:
        (first / "energy_uj").write_text("2000000")  # wrapped at 10 J: 3 J used
        (second / "energy_uj").write_text("1500000")
    assert reading.joules == pytest.approx(3.5)


def test_no_counter_is_a_reason(tmp_path: Path) -> None:
    assert rapl_meter(tmp_path) == NoMeter("no energy counter")
    zone(tmp_path, "intel-rapl:0", "")
    assert rapl_meter(tmp_path) == NoMeter("the RAPL energy counter cannot be read by this user")


@pytest.mark.parametrize(("wraps_at", "later"), [("", "3000000"), ("0", "3000000"), ("10000000", "")])
def test_a_counter_that_runs_backwards_or_goes_away_gives_no_number(tmp_path: Path, wraps_at: str, later: str) -> None:
    folder = zone(tmp_path, "intel-rapl:0", "5000000", wraps_at=wraps_at)
    meter = rapl_meter(tmp_path)
    assert isinstance(meter, EnergyMeter)
    with meter.measure() as reading:
        (folder / "energy_uj").write_text(later)
    assert reading.joules is None


def test_the_gpus_energy_is_that_of_the_visible_card(make_nvml: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbb")
    meter = nvml_meter(make_nvml())
    assert isinstance(meter, EnergyMeter)
    with meter.measure() as reading:
        pass
    assert reading.joules == pytest.approx(2.0)


def test_a_gpu_counter_that_fails_later_gives_no_number(make_nvml: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbb")
    nvml = make_nvml()
    meter = nvml_meter(nvml)
    assert isinstance(meter, EnergyMeter)
    with meter.measure() as reading:
        nvml.broken.add("energy")
    assert reading.joules is None


def test_a_gpu_without_a_counter_of_its_own_is_a_reason(make_nvml: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvml_meter("NVIDIA driver not found") == NoMeter("NVIDIA driver not found")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-111")
    assert nvml_meter(make_nvml(mig=True)) == NoMeter("a MIG instance has no energy counter of its own")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbb")
    old = make_nvml()
    old.broken.add("energy")
    assert nvml_meter(old) == NoMeter("this GPU has no energy counter: Not Supported")


@pytest.mark.parametrize(
    ("samples", "joules"),
    [
        ([(1.0, 4.0), (2.0, 4.0), (3.0, 4.0)], 16.0),  # constant: every trapezoid a rectangle, out to both ends
        ([(1.0, 2.0), (2.0, 4.0), (3.0, 8.0)], 2.0 + 3.0 + 6.0 + 8.0),  # by hand
        ([(0.5, 1.0), (1.0, 1.0), (3.5, 6.0)], 0.5 + 0.5 + 2.5 * 3.5 + 3.0),  # not evenly spaced
        ([(1.0, 4.0), (2.0, 4.0)], None),  # too few
        ([(1.0, 4.0), (2.0, None), (2.5, 4.0), (3.0, 4.0)], None),  # a reading that failed
        ([], None),
    ],
)
def test_energy_is_the_integral_of_sampled_power(
    samples: list[tuple[float, float | None]], joules: float | None
) -> None:
    found = integral(samples, 0.0, 4.0, least=3)
    assert found == (None if joules is None else pytest.approx(joules))


def test_the_integral_of_a_ramp_is_exact_between_its_samples() -> None:
    samples = [(t / 10, 5.0 * t / 10) for t in range(11)]
    assert integral(samples, 0.0, 1.0, least=5) == pytest.approx(2.5)


def test_power_is_sampled_while_the_block_runs_and_not_after() -> None:
    enough, readings = threading.Event(), []

    def read() -> float:
        readings.append(threading.get_ident())
        if len(readings) >= 20:
            enough.set()
        return 7.0

    meter = PowerMeter("a rail", read, every_s=0.001)
    began = time.perf_counter()
    with meter.measure() as reading:
        assert enough.wait(30)
    longest = time.perf_counter() - began
    after = len(readings)
    assert threading.get_ident() not in readings
    assert reading.joules is not None
    assert 0 < reading.joules <= 7.0 * longest
    assert len(readings) == after


def test_a_meter_that_fails_in_between_gives_no_number() -> None:
    answers, over = iter([7.0] * 10 + [None]), threading.Event()

    def read() -> float | None:
        answer = next(answers, 8.0)
        if answer == 8.0:  # the one that failed is in
            over.set()
        return answer

    with PowerMeter("a rail", read, every_s=0.001).measure() as reading:
        assert over.wait(30)
    assert reading.joules is None


def test_the_thread_ends_with_a_block_that_raises() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), PowerMeter("a rail", lambda: 7.0, every_s=0.001).measure() as reading:
        raise ZeroDivisionError
    assert threading.active_count() == before
    assert reading.joules is None


PI_5 = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}
PI_4 = {"proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0"}


def test_a_raspberry_pi_5_is_metered_by_its_rails(record: Record, firmware: dict[str, str]) -> None:
    firmware["pmic_read_adc"] = raspberry.PMIC
    meter = energy_meter("cpu", record(PI_5))
    assert isinstance(meter, PowerMeter)
    assert (meter.source, meter.trust) == ("PMIC rails", "derived")
    assert meter.read() == pytest.approx(raspberry.PMIC_W, abs=0.01)


def test_a_raspberry_pi_4_has_no_meter_and_says_so(record: Record, firmware: dict[str, str]) -> None:
    firmware["pmic_read_adc"] = raspberry.PMIC_ABSENT
    expected = NoMeter("Raspberry Pi 4 Model B does not measure the power of its rails")
    assert energy_meter("cpu", record(PI_4)) == expected
    assert pmic_meter("Raspberry Pi 4 Model B Rev 1.4") == expected


@pytest.mark.parametrize("watts", [5.0, None])
def test_what_one_call_took_says_how_far_to_trust_it(monkeypatch: pytest.MonkeyPatch, watts: float | None) -> None:
    meter = PowerMeter("a rail", lambda: watts, window_s=0.1, every_s=0.001)
    monkeypatch.setattr(energy, "energy_meter", lambda device: meter)
    calls = []
    began = time.perf_counter()
    found = energy.energy_of(lambda: calls.append(time.sleep(0.01)), "cpu", latency_s=0.01)
    longest = time.perf_counter() - began
    assert len(calls) == 10
    if watts is None:
        assert found is None
    else:
        assert found is not None
        assert (found.source, found.trust) == ("a rail", "derived")
        assert 5.0 * 0.01 <= found.joules <= 5.0 * longest / 10


def test_without_a_meter_nothing_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "energy_meter", lambda device: NoMeter("no energy counter"))
    assert energy.energy_of(lambda: pytest.fail("called"), "cpu", latency_s=1.0) is None
