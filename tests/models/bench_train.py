"""What the training loop costs a step: telemetry, clipping, average, checkpoint; in pairs, on one thread.

Not collected with the tests: ``OMP_NUM_THREADS=1 python tests/models/bench_train.py``. Every comparison alternates its
two sides step by step in one process; the medians of both and of the paired differences are printed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models._train_checkpoint import random_states, write
from archbench.models.train import Recipe, Step, seeded

RECIPE = Recipe(steps=1000, lr=1e-3)
PAIRS = 60


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def convolutions() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of 20 convolutions with norms, 0.17 million weights in 62 tensors, and a batch of 8 images."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, stride=2, padding=1)]
    for _ in range(19):
        layers += [nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, bias=False)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(*layers), (torch.randn(8, 3, 32, 32), torch.arange(8))


def matrices() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Six wide layers, 6.3 million weights in 12 tensors, and a batch of 64 rows."""
    layers = [layer for _ in range(6) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
    return nn.Sequential(*layers), (torch.randn(64, 1024), torch.randint(0, 1024, (64,)))


def paired(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float, float]:
    """Median seconds of both, and of their difference within a pair."""
    times: list[tuple[float, float]] = []
    for number in range(PAIRS + 5):
        took = {}
        for call in (one, other) if number % 2 else (other, one):
            started = time.perf_counter()
            call()
            took[call] = time.perf_counter() - started
        times.append((took[one], took[other]))
    first, second = zip(*times[5:], strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(b - a for a, b in times[5:])


def bare(model: nn.Module, batch: tuple[Tensor, ...], optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    def step() -> None:
        value = loss(model, *batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()

    return step


def default_optimizer(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """As torch makes it when asked for nothing in particular."""
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-3)
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)


def compare(make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]], kind: str) -> Step:
    """Print what each part adds to the plain step; the plain step."""
    recipe = replace(RECIPE, optimizer=kind)
    with seeded(0):
        (model, batch), (twin, _) = make(), make()
    plain = Step(model, loss, recipe)
    clipped = Step(twin, loss, replace(recipe, clip_norm=1.0))
    averaged = Step(twin, loss, replace(recipe, ema_decay=0.99))
    sides: dict[str, Callable[[], object]] = {
        "a bare loop with torch's default optimizer": bare(twin, batch, default_optimizer(twin, kind)),
        "a watched step": lambda: plain(*batch, watch=True),
        "clipping": lambda: clipped(*batch),
        "a moving average": lambda: averaged(*batch),
    }
    for name, other in sides.items():
        base_s, other_s, difference_s = paired(lambda: plain(*batch), other)
        change = f"{difference_s * 1e3:+.3f} ms ({difference_s / base_s:+.1%})"
        print(f"  {kind:5} step {base_s * 1e3:7.3f} ms, {name} {other_s * 1e3:7.3f} ms: {change}", flush=True)
    return plain


def main() -> None:
    for make in (convolutions, matrices):
        print(make.__doc__)
        compare(make, "sgd")
        step = compare(make, "adamw")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.pt"
            started = time.perf_counter()
            write(path, {"step": step.state(), "random": random_states()})
            took_ms = (time.perf_counter() - started) * 1e3
            print(f"  a checkpoint of {path.stat().st_size / 1e6:.1f} MB with AdamW: {took_ms:.1f} ms")


if __name__ == "__main__":
    main()
