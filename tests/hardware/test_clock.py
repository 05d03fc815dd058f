"""The paired clock: order, stopping, audit, late work, and the CUDA timer on a simulated device."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest

from archbench.hardware.clock import Audit, LateWork, Rotation, calibrate, fight
from archbench.hardware.timers import CpuTimer, CudaTimer, Inputs, Sample
from archbench.stats import control_log_ratios, hodges_lehmann
from archbench.track import Call, Timing


@dataclass
class Scripted:
    """A timer that charges each call a fixed time and remembers the order."""

    seconds: dict[Call, float]
    late: dict[Call, float] = field(default_factory=dict)
    order: list[Call] = field(default_factory=list)
    seen: list[list[Inputs]] = field(default_factory=list)

    def sample(self, call: Call, batch: Sequence[Inputs]) -> Sample:
        self.order.append(call)
        self.seen.append(list(batch))
        return Sample(self.seconds[call] * len(batch), None, self.late.get(call, 0.0), call(*batch[-1]))


def quick(*_: Any) -> str:
    return "quick"


def slow(*_: Any) -> str:
    return "slow"


def test_the_ratio_of_a_noiseless_duel_is_exact_and_needs_the_least_number_of_blocks() -> None:
    duel, ratio = fight(slow, quick, [()], Scripted({slow: 0.03, quick: 0.01}), Timing(min_blocks=10))
    assert len(duel.contender_s) == len(duel.baseline_s) == len(duel.control_s) == 10
    assert ratio.exp().value == pytest.approx(3.0)
    assert hodges_lehmann(control_log_ratios(duel)).value == 0.0
    assert duel.stopped == "interval"


def test_a_noisy_duel_stops_on_its_budget_but_never_before_the_least_number_of_blocks() -> None:
    rng = random.Random(0)

    class Noisy(Scripted):
        def sample(self, call: Call, batch: Sequence[Inputs]) -> Sample:
            return Sample(math.exp(rng.gauss(0, 1)), None, 0.0, None)

    ticks = iter(range(10**6))
    duel, _ = fight(
        slow, quick, [()], Noisy({}), Timing(min_blocks=12, budget_s=20), now=lambda: float(next(ticks)), rng=rng
    )
    assert duel.stopped == "budget"
    assert 12 <= len(duel.contender_s) <= 40


def test_blocks_take_contender_baseline_and_control_in_random_order() -> None:
    timer = Scripted({slow: 0.03, quick: 0.01})
    fight(slow, quick, [()], timer, Timing(min_blocks=40), rng=random.Random(3))
    blocks = [timer.order[-3 * i - 3 : len(timer.order) - 3 * i] for i in range(40)]
    assert all(sorted(c.__name__ for c in block) == ["quick", "quick", "slow"] for block in blocks)
    positions = [block.index(slow) for block in blocks]
    assert {0, 1, 2} == set(positions)


def test_input_sets_rotate_so_that_no_call_meets_the_set_of_the_call_before() -> None:
    timer = Scripted({slow: 0.0003, quick: 0.0003})
    sets = [(i,) for i in range(5)]
    fight(slow, quick, sets, timer, Timing())
    met = [inputs for batch in timer.seen for inputs in batch]  # over all sides: none meets what another has warmed
    assert all(a != b for a, b in pairwise(met))
    assert {inputs for batch in timer.seen for inputs in batch} == set(sets)


def test_one_sample_of_the_contender_is_audited_at_a_block_that_varies() -> None:
    blocks = set()
    for seed in range(30):
        log: list[str] = []
        timer = Scripted({slow: 0.03, quick: 0.01})
        audit = Audit(
            refill=lambda inputs, log=log, timer=timer: log.append(f"refill {len(timer.order)}"),
            keep=lambda inputs, output, log=log: log.append(str(output)),
            renew=lambda batch: None,
        )
        fight(slow, quick, [()], timer, Timing(), rng=random.Random(seed), audit=audit)
        assert log[1:] == ["slow"]
        blocks.add(log[0])
    assert len(blocks) > 5


def test_every_sample_is_followed_by_the_renewal_of_what_it_used() -> None:
    timer = Scripted({slow: 0.03, quick: 0.01})
    renewed: list[list[Inputs]] = []
    seen_before: list[int] = []

    def renew(batch: Sequence[Inputs]) -> None:
        renewed.append(list(batch))
        seen_before.append(len(timer.order))

    sets = [(i,) for i in range(5)]
    audit = Audit(refill=lambda inputs: None, keep=lambda inputs, output: None, renew=renew)
    fight(slow, quick, sets, timer, Timing(), audit=audit)
    calibration = seen_before[0]
    assert renewed == [sets, *timer.seen[calibration:]]
    assert seen_before == [calibration, *range(calibration + 1, len(timer.order) + 1)]


def test_work_left_on_the_device_after_most_samples_is_an_error() -> None:
    with pytest.raises(LateWork):
        fight(slow, quick, [()], Scripted({slow: 0.01, quick: 0.01}, late={slow: 0.005}), Timing())
    fight(slow, quick, [()], Scripted({slow: 0.01, quick: 0.01}, late={slow: 0.0001}), Timing())


def test_calibration_makes_a_sample_last_and_stops_at_its_limit() -> None:
    assert calibrate(quick, Rotation([()]), Scripted({quick: 1e-4}), 2e-3) >= 20
    assert calibrate(quick, Rotation([()]), Scripted({quick: 1.0}), 2e-3) == 1
    assert calibrate(quick, Rotation([()]), Scripted({quick: 0.0}), 2e-3) == 100_000


def test_the_clock_refuses_to_time_nothing() -> None:
    with pytest.raises(ValueError, match="inputs"):
        fight(slow, quick, [], CpuTimer(), Timing())


def test_the_cpu_timer_counts_both_clocks_and_keeps_the_last_output() -> None:
    sample = CpuTimer().sample(lambda n: sum(range(n)), [(20_000,), (20_001,)])
    assert sample.seconds > 0
    assert sample.cpu_seconds is not None
    assert sample.last_output == sum(range(20_001))
    assert sample.late_seconds == 0


@dataclass
class FakeCuda:
    """A device with a main stream and a side stream; a clock that only its own work moves."""

    now: float = 0.0
    main: float = 0.0
    side: float = 0.0
    flushes: int = 0
    captures: int = 0

    def launch(self, seconds: float) -> None:
        self.main = max(self.main, self.now) + seconds

    def launch_aside(self, seconds: float) -> None:
        self.side = max(self.side, self.now) + seconds

    def flush_l2(self) -> None:
        self.flushes += 1
        self.launch(1e-4)

    def record(self) -> float:
        return max(self.main, self.now)

    def wait(self, event: float) -> None:
        self.now = max(self.now, event)

    def elapsed_s(self, start: float, end: float) -> float:
        return end - start

    def synchronize(self) -> None:
        self.now = max(self.now, self.main, self.side)

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        self.captures += 1
        return call

    def now_ns(self) -> int:
        return int(self.now * 1e9)


def test_the_cuda_timer_leaves_the_flush_outside_and_counts_the_batch() -> None:
    device = FakeCuda()
    sample = CudaTimer(device).sample(lambda: device.launch(2e-3), [()] * 5)
    assert sample.seconds == pytest.approx(0.01)
    assert sample.late_seconds == 0
    assert device.flushes == 1


def test_work_on_another_stream_is_seen_as_late_and_loses_the_duel() -> None:
    device = FakeCuda()

    def honest() -> None:
        device.launch(2e-3)

    def sneaky() -> None:
        device.launch(1e-5)
        device.launch_aside(2e-3)

    assert CudaTimer(device).sample(sneaky, [()]).late_seconds > 1e-3
    with pytest.raises(LateWork, match="leaves work running"):
        fight(sneaky, honest, [()], CudaTimer(device), Timing())
    _, ratio = fight(honest, honest, [()], CudaTimer(device), Timing())
    assert ratio.exp().value == pytest.approx(1.0, rel=1e-6)


def test_a_cuda_graph_is_captured_once_for_each_call_and_input_set() -> None:
    device = FakeCuda()
    timer = CudaTimer(device, graph=True)
    call, sets = (lambda x: device.launch(1e-3)), [(1,), (2,)]
    for _ in range(3):
        timer.sample(call, sets)
    assert device.captures == 2
