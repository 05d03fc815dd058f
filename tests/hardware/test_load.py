"""The watch: shares of CPU time, heat, clocks and what counts as throttling."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from archbench.hardware import load, pi
from archbench.hardware.load import Watch, cpu_temperature, gpu_throttle, snapshot

Record = Callable[[Mapping[str, str]], Path]
Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


def watched(monkeypatch: pytest.MonkeyPatch, before: Times, after: Times, own_s: float) -> dict[str, Any]:
    clock, own = iter([before, after]), iter([10.0, 10.0 + own_s])
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(clock))
    monkeypatch.setattr(load, "tree_cpu_s", lambda: next(own))
    watch = Watch(nvml="none")
    watch.start()
    return watch.stop()


def test_shares_are_those_of_the_whole_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Times(100, 0, 10, 1000, 5, 0, 0, 20, 0, 0)
    # 100 CPU seconds: 50 idle, 10 stolen, 40 busy, of which 30 are ours. Guests are counted in user already.
    after = Times(130, 0, 20, 1045, 10, 0, 0, 30, 25, 0)
    seen = watched(monkeypatch, before, after, own_s=30)
    assert seen["steal_fraction"] == 0.1
    assert seen["other_cpu_fraction"] == 0.1


def test_no_share_leaves_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Times(100, 0, 10, 1000, 5, 0, 0, 20, 0, 0)
    after = Times(101, 0, 10, 1001, 5, 0, 0, 20, 0, 0)
    # The clocks of a process and of the machine tick apart: ours may look larger than all there was.
    assert watched(monkeypatch, before, after, own_s=1.5)["other_cpu_fraction"] == 0.0


def test_what_our_own_tree_burns_is_not_others() -> None:
    watch = Watch(nvml="none")
    watch.start()
    sum(range(3_000_000))
    seen = watch.stop()
    assert 0 <= float(seen["other_cpu_fraction"] or 0) <= 1
    assert float(seen["load1"] or 0) >= 0


def test_temperature_is_the_cpus_zone_whatever_its_number(record: Record) -> None:
    zones = {"0": ("acpitz", "27800"), "1": ("iwlwifi_1", "41000"), "2": ("x86_pkg_temp", "63000")}
    files = {}
    for number, (kind, value) in zones.items():
        files |= {f"sys/class/thermal/thermal_zone{number}/{k}": v for k, v in (("type", kind), ("temp", value))}
    root = record(files)
    assert cpu_temperature(root) == 63.0
    (root / "sys/class/thermal/thermal_zone2/temp").write_text("")
    assert cpu_temperature(root) == 27.8


def test_a_snapshot_has_only_what_is_available(record: Record) -> None:
    root = record({"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n"})
    seen = snapshot(root, nvml="none")
    assert seen["cpu_clock_hz"] == 2.4e9
    assert set(seen) == {"load1", "cpu_clock_hz"}


def test_the_visible_card_is_watched(make_nvml: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc")
    nvml = make_nvml()
    seen = snapshot(nvml=nvml)
    assert (seen["gpu_temperature_c"], seen["gpu_clock_hz"]) == (65, 1.755e9)
    assert [handle[1] for handle in nvml.asked_about] == ["C"]
    nvml.broken.add("temperature")
    assert "gpu_temperature_c" not in snapshot(nvml=nvml)


@pytest.mark.parametrize(
    ("reasons", "held_back_ns", "expected"),
    [
        ((0, 0), 0, None),
        ((0x04, 0x01), 0, None),  # the power cap is how a card runs under load; idle is how it ends
        ((0x20, 0x01), 0, "too hot"),
        ((0, 0x20 | 0x80), 0, "too hot, power brake"),
        ((0, 0x01), 10**12, "too hot"),  # in between: only the counter saw it
    ],
)
def test_a_card_throttles_at_either_end_or_in_between(
    make_nvml: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    reasons: Sequence[int],
    held_back_ns: int,
    expected: str | None,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaa")
    nvml = make_nvml()
    watch = Watch(nvml=nvml)
    nvml.reasons = reasons[0]
    watch.start()
    nvml.reasons, nvml.held_back_ns = reasons[1], held_back_ns
    assert watch.stop().get("throttle") == expected


def test_a_card_without_the_counter_still_has_reasons(
    make_nvml: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aaa")
    nvml = make_nvml()
    nvml.broken.add("violation")
    watch = Watch(nvml=nvml)
    watch.start()
    nvml.reasons = 0x40
    assert watch.stop()["throttle"] == "too hot (hardware)"


def test_reasons_are_put_in_words() -> None:
    assert gpu_throttle(0x04) == ""
    assert gpu_throttle(0x08) == "hardware slowdown"


def test_the_watch_asks_the_raspberry_pi(monkeypatch: pytest.MonkeyPatch) -> None:
    bits, clocks = iter(["throttled=0x0", "throttled=0x20002"]), iter(["frequency(0)=1500016768"])
    answers = {"get_throttled": bits, "measure_clock": clocks}
    monkeypatch.setattr(pi, "vcgencmd", lambda command, *_: next(answers[command]))
    watch = Watch(nvml="none")
    watch.start()
    seen = watch.stop()
    assert seen["throttle"] == "frequency capped"
    assert seen["cpu_clock_hz"] == 1500016768.0  # the kernel would go on saying 2.4 GHz
