"""The one training loop: every run of every track is trained, watched and resumed by it.

``fit`` trains a model by a ``Recipe`` and answers a ``History``. Batches are a pure function of the step and everything
random follows from the seed, so a run that was killed goes on from its checkpoint to the same bits (on a CPU, with the
same number of threads). Losses and norms are read at log steps only: between them nothing waits for the device.

Source: docs/training.md says what is measured how, and why the loop is our own
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from archbench.models import _train_checkpoint as checkpoints
from archbench.models._train_checkpoint import derived, seeded
from archbench.models._train_history import ERROR, History
from archbench.models._train_recipe import Recipe, learning_rate
from archbench.models._train_step import Loss, Step

__all__ = ["History", "Recipe", "Step", "fit", "learning_rate", "seeded"]

Batches = Callable[[int], tuple[Tensor, ...]]
Evaluate = Callable[[nn.Module], dict[str, float]]

LOG = logging.getLogger(__name__)


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    evaluate: Evaluate,
    recipe: Recipe,
    *,
    seed: int,
    device: str = "cpu",
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    progress: bool = False,
) -> History:
    """Train ``model`` in place; it is left in eval mode with the weights that were evaluated last.

    ``batches(step)`` is a pure function of the step, 0 to ``recipe.steps - 1``; where it has ``waited_s`` (cumulative
    seconds its caller waited) that is the input time, otherwise the time of the calls. ``loss(model, *batch)`` is a
    scalar. ``evaluate(model)`` returns curves by name, among them ``test_error``, a fraction; it is called before the
    first update, every ``eval_every`` updates and after the last, in eval mode, without gradients and with random
    numbers of its own. An existing ``checkpoint`` is continued, also one of a finished run.

    Raises ValueError before the first update for a mistake in model, loss, batches, evaluate or checkpoint.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every is {checkpoint_every}, must be at least 1")
    with seeded(derived(seed, "fit")):
        run = _Run(model, loss, batches, evaluate, recipe, seed, device)
        if checkpoint is not None:
            run.keep(checkpoint, checkpoint_every)
        with _bar(run.history.steps, recipe.steps, progress) as show:
            run.train(show)
        return run.history


class _Run:
    """A run in progress."""

    def __init__(
        self, model: nn.Module, loss: Loss, batches: Batches, evaluate: Evaluate, recipe: Recipe, seed: int, device: str
    ) -> None:
        self.step = Step(model, loss, recipe, device)
        self.batches, self.evaluate, self.recipe, self.seed = batches, evaluate, recipe, seed
        self.history = History()
        self.finished = False
        self.warned = False
        self.read_at = 0.0
        self.first = _checked_batch(batches(0), self.step.device)
        self.unread: list[Tensor] = []  # losses since the last reading, still on the device
        self.window: list[float] = [0, 0, 0.0]  # since the last log step: updates, samples, seconds
        self.path: Path | None = None
        self.path_every = 0
        self.identity: dict[str, Any] = {}

    def keep(self, path: Path, every: int) -> None:
        """Continue from ``path`` where it exists, and write it every so many updates."""
        model = self.step.model
        shapes = [f"{name} {tuple(t.shape)} {t.dtype}" for name, t in model.state_dict().items()]
        self.identity = asdict(self.recipe) | {
            "seed": self.seed,
            "device": self.step.device.type,
            "model": shapes,
            "first batch": checkpoints.digest_of(self.first),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.path_every = path, every
        if path.exists():
            state = checkpoints.read(path, self.identity)
            self.step.restore(state["step"])
            self.history = History(**state["history"])
            self.window, self.finished = state["window"], state["finished"]
            checkpoints.set_random_states(state["random"])

    def train(self, show: Callable[[int, str], None]) -> None:
        history, recipe = self.history, self.recipe
        if not history.curves:
            self._evaluate()
        self.step.model.train()
        self.read_at = time.perf_counter()
        while not self.finished:
            number = history.steps + 1
            self.finished = number == recipe.steps
            logs = self.finished or number == 1 or number % recipe.log_every == 0
            evaluates = self.finished or (recipe.eval_every is not None and number % recipe.eval_every == 0)
            saves = self.path is not None and (self.finished or number % self.path_every == 0)
            self._update(watch=logs)
            if logs or evaluates or saves:
                self._read(logs)
            if evaluates and not history.diverged:
                self._evaluate()
            if history.diverged:
                self.finished = True
            if saves or (self.finished and self.path is not None):
                self._save()
            if logs:
                show(number, f"loss {history.curves['loss'][-1][1]:.4g}, error {history.curves[ERROR][-1][1]:.4g}")
            if logs or evaluates or saves:
                self.read_at = time.perf_counter()
        self.step.swap()
        self.step.model.eval()

    def _update(self, watch: bool) -> None:
        done = self.history.steps
        batch, self.first = (self.first if done == 0 else self._batch(done)), ()
        self.step.set_lr(learning_rate(self.recipe, done))
        self.unread.append(self.step(*batch, watch=watch))
        self.history.steps = done + 1
        self.window[0] += 1
        self.window[1] += len(batch[0])

    def _batch(self, number: int) -> tuple[Tensor, ...]:
        before, started = getattr(self.batches, "waited_s", None), time.perf_counter()
        batch = self.batches(number)
        called_s = time.perf_counter() - started
        self.history.waited_s += called_s if before is None else self.batches.waited_s - before  # type: ignore[attr-defined]
        return batch

    def _read(self, logs: bool) -> None:
        """Wait for the device: look at the losses since the last reading, stop the clock, log where it is time."""
        history = self.history
        watched = self.step.watched if logs else ()
        values = torch.stack([tensor.double() for tensor in (*self.unread, *watched)]).tolist()
        losses, norms = values[: len(self.unread)], values[len(self.unread) :]
        self.unread.clear()
        passed_s = time.perf_counter() - self.read_at
        history.train_s += passed_s
        self.window[2] += passed_s
        self._judge(losses)
        if logs:
            grad, update, weight = norms
            updates, samples, seconds = self.window
            history.add("loss", history.steps, losses[-1])
            history.add("grad_norm", history.steps, grad)
            history.add("update_ratio", history.steps, update / weight if weight else math.inf)
            history.add("lr", history.steps, learning_rate(self.recipe, history.steps - 1))
            history.add("samples_per_s", history.steps, samples / seconds)
            history.add("step_s", history.steps, seconds / updates)
            self.window = [0, 0, 0.0]

    def _judge(self, losses: list[float]) -> None:
        factor, first = self.recipe.divergence_factor, self.step.initial_loss
        assert first is not None
        limit = math.inf if factor is None else factor * abs(first)
        for number, value in enumerate(losses, self.history.steps - len(losses) + 1):
            if not (math.isfinite(value) and value <= limit):
                self.history.diverged_at = number
                return

    def _evaluate(self) -> None:
        history, model = self.history, self.step.model
        model.eval()
        with seeded(derived(self.seed, f"evaluate {history.steps}")), self.step.averaged(), torch.no_grad():
            values = self.evaluate(model)
        model.train()
        if ERROR not in values:
            raise ValueError(f"evaluate returned {', '.join(values) or 'nothing'}: {ERROR} is missing")
        odd = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
        if odd and history.steps == 0:
            raise ValueError(f"evaluate returned {', '.join(odd)} before the first update")
        if values[ERROR] < 0 or values[ERROR] > 1:
            raise ValueError(f"evaluate returned {ERROR} = {values[ERROR]}, must be a fraction: 0 to 1")
        for name, value in values.items():
            history.add(name, history.steps, value)
        if odd:
            history.diverged_at = history.steps
        target = self.recipe.target_error
        if target is not None and history.steps_to_target is None and values[ERROR] <= target:
            history.steps_to_target, history.seconds_to_target = history.steps, history.train_s

    def _save(self) -> None:
        assert self.path is not None
        state = {
            "identity": self.identity,
            "step": self.step.state(),
            "history": asdict(self.history),
            "window": self.window,
            "finished": self.finished,
            "random": checkpoints.random_states(),
        }
        try:
            checkpoints.write(self.path, state)
        except OSError as error:
            if error.errno not in checkpoints.NO_ROOM:
                raise
            if not self.warned:
                self.warned = True
                what = f"checkpoint after update {self.history.steps} not written ({error.strerror})"
                self.history.events.append(f"{what}: training goes on, the one before stays")
                LOG.warning("%s: %s", self.path, self.history.events[-1])


def _checked_batch(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    if not isinstance(batch, tuple) or not batch or not all(isinstance(tensor, Tensor) for tensor in batch):
        raise ValueError(f"batches(0) returned {type(batch).__name__}, expected a tuple of tensors")
    for tensor in batch:
        if tensor.device.type not in ("cpu", device.type):
            raise ValueError(
                f"batches(0) is on {tensor.device}, the model on {device}: give batches there, or on the CPU"
            )
    return batch


@contextmanager
def _bar(done: int, steps: int, wanted: bool) -> Iterator[Callable[[int, str], None]]:
    """A bar with the remaining time, on a terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda step, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=steps, completed=done)
        yield lambda step, text: bar.update(task, completed=step, description=text)
