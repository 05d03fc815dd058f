"""Timers: how one sample is taken on a CPU and on a CUDA device.

A sample runs a batch of calls, one input set per call, and returns seconds per batch. The CPU timer reads
wall and process-CPU clocks. The CUDA timer brackets the batch with events after an L2 flush, then waits for
the *whole device*: time that passes after the last event is work the contender put on another stream, and a
contender that leaves some is wrong, however quick its events look.

The clocks are bound when this module is imported, so a contender that patches ``time`` changes nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter_ns, process_time_ns
from typing import Any, Protocol

from archbench.track import Call, Device

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Sample:
    """Seconds for a whole batch of calls."""

    seconds: float
    cpu_seconds: float | None  # process CPU time, all threads; None on a GPU
    late_seconds: float  # device work that outlived the timed region; 0 on a CPU
    last_output: Any  # what the last call returned: for the audit


class Timer(Protocol):
    """Takes samples on one device."""

    def sample(self, call: Call, batch: Sequence[Inputs]) -> Sample:
        """Run ``call(*inputs)`` for every entry of a non-empty batch."""


class CpuTimer:
    """Wall time and process-CPU time of a batch; 40 ns of overhead per call is the loop itself."""

    def sample(self, call: Call, batch: Sequence[Inputs]) -> Sample:
        # The last call is kept apart so that its output survives without keeping every other one alive.
        head, tail = batch[:-1], batch[-1]
        cpu = process_time_ns()
        start = perf_counter_ns()
        for inputs in head:
            call(*inputs)
        output = call(*tail)
        end = perf_counter_ns()
        cpu = process_time_ns() - cpu
        return Sample((end - start) * 1e-9, cpu * 1e-9, 0.0, output)


class CudaRuntime(Protocol):
    """The few things the CUDA timer needs; ``TorchCuda`` provides them, tests use a simulated device."""

    def flush_l2(self) -> None: ...
    def record(self) -> Any: ...
    def wait(self, event: Any) -> None: ...
    def elapsed_s(self, start: Any, end: Any) -> float: ...
    def synchronize(self) -> None: ...
    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]: ...
    def now_ns(self) -> int: ...


class TorchCuda:
    """The CUDA runtime through torch, on the current device. Raises RuntimeError where torch has no CUDA device."""

    def __init__(self) -> None:
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no CUDA device")
        self._cuda = torch.cuda
        l2 = int(getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "L2_cache_size", 0))
        # Twice the L2, because an equal-sized write leaves part of the old lines in a hashed cache.
        self._flush = torch.empty(max(2 * l2, 64 << 20) // 4, dtype=torch.int32, device="cuda")

    def flush_l2(self) -> None:
        self._flush.zero_()

    def record(self) -> Any:
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, event: Any) -> None:
        event.synchronize()

    def elapsed_s(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end)) * 1e-3

    def synchronize(self) -> None:
        self._cuda.synchronize()

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any]:
        stream = self._cuda.Stream()
        stream.wait_stream(self._cuda.current_stream())
        with self._cuda.stream(stream):
            for _ in range(3):  # capture wants warm allocators and finished autotuning
                call()
        self._cuda.current_stream().wait_stream(stream)
        graph = self._cuda.CUDAGraph()
        with self._cuda.graph(graph):
            output = call()

        def replay() -> Any:
            graph.replay()
            return output

        return replay

    def now_ns(self) -> int:
        return perf_counter_ns()


class CudaTimer:
    """CUDA events around a batch, L2 flushed before, the device drained after.

    ``graph=True`` captures each (call, input set) once and times replays: launch overhead of the host vanishes,
    as it does for a user who captures a training step.
    """

    def __init__(self, runtime: CudaRuntime, *, graph: bool = False) -> None:
        self._runtime = runtime
        self._graph = graph
        self._captured: dict[tuple[int, int], tuple[Callable[[], Any], Call, Inputs]] = {}

    def sample(self, call: Call, batch: Sequence[Inputs]) -> Sample:
        runtime = self._runtime
        steps = [self._step(call, inputs) for inputs in batch]
        runtime.synchronize()
        runtime.flush_l2()
        start = runtime.record()
        for step in steps[:-1]:
            step()
        output = steps[-1]()
        end = runtime.record()
        runtime.wait(end)
        ended = runtime.now_ns()
        runtime.synchronize()
        late = (runtime.now_ns() - ended) * 1e-9
        return Sample(runtime.elapsed_s(start, end), None, late, output)

    def _step(self, call: Call, inputs: Inputs) -> Callable[[], Any]:
        if not self._graph:
            return lambda: call(*inputs)
        key = (id(call), id(inputs))
        if key not in self._captured:
            # The call and its inputs are kept with the graph, so that their ids cannot be reused.
            self._captured[key] = (self._runtime.capture(lambda: call(*inputs)), call, inputs)
        return self._captured[key][0]


def timer_for(device: Device, *, cuda_graph: bool = False) -> Timer:
    """The timer of a device. Raises RuntimeError for cuda where torch sees none."""
    return CudaTimer(TorchCuda(), graph=cuda_graph) if device == "cuda" else CpuTimer()


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside: a collection in the middle of a sample is not the contender's time."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
