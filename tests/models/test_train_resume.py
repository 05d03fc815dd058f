"""Killed, resumed, out of disk: a run goes on from its checkpoint to the same bits as one nobody disturbed.

Run as a script this file is the other process: it trains in children of its own and kills them with SIGKILL.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models.train import History, Recipe, fit, seeded

TIMED = ("samples_per_s", "step_s")  # the only curves of wall time
EVERY = 7
RECIPE = Recipe(
    steps=120, lr=0.02, optimizer="adamw", weight_decay=0.1, warmup_steps=9, clip_norm=1.0, ema_decay=0.95,
    eval_every=25, target_error=0.4, log_every=4,
)  # fmt: skip
SGD = replace(RECIPE, optimizer="sgd", ema_decay=None, precision="bf16", channels_last=True, clip_norm=None)


def batches(step: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 3, 6, 6, generator=generator)
    return x, (x.mean((1, 2, 3)) > 0).long()


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def evaluate(model: nn.Module) -> dict[str, float]:
    x, y = batches(10**6)
    out = model(x)
    return {"test_error": float((out.argmax(1) != y).float().mean()), "test_loss": float(F.cross_entropy(out, y))}


def network(seed: int = 0, width: int = 8) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.LazyLinear(2)
        ).apply(_materialise)


def _materialise(module: nn.Module) -> None:
    if isinstance(module, nn.LazyLinear):
        module.initialize_parameters(torch.empty(1, 8 * 16))


def train(recipe: Recipe, path: Path | None, **changes: Any) -> tuple[History, nn.Module]:
    model = changes.pop("model", None) or network()
    given: dict[str, Any] = {"loss": loss, "batches": batches, "evaluate": evaluate, "seed": 3} | changes
    return fit(model, recipe=recipe, checkpoint=path, checkpoint_every=EVERY, **given), model


def outcome(history: History, model: nn.Module) -> dict[str, Any]:
    """Everything a run produces that does not depend on the clock: weights as hex floats, so that bits compare."""
    return {
        "weights": {name: [float(v).hex() for v in t.flatten()] for name, t in model.state_dict().items()},
        "curves": {name: [list(p) for p in curve] for name, curve in history.curves.items() if name not in TIMED},
        "timed at": [[step for step, _ in history.curves[name]] for name in TIMED],
        "steps": [history.steps, history.steps_to_target, history.diverged_at],
    }


class Stop(Exception):
    """Ends a run from inside, as an exception of a data set would."""


def stopping_at(last: int) -> Callable[[int], tuple[Tensor, ...]]:
    def stop(step: int) -> tuple[Tensor, ...]:
        if step == last:
            raise Stop
        return batches(step)

    return stop


@pytest.mark.parametrize("recipe", [RECIPE, SGD], ids=["adamw with an average", "sgd in bf16"])
def test_a_resumed_run_ends_in_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    expected = outcome(*train(recipe, None))
    for last in (1, 8, 50, 51, 119):
        with pytest.raises(Stop):
            train(recipe, tmp_path / "run.pt", batches=stopping_at(last))
    done = train(recipe, tmp_path / "run.pt", model=network(seed=99))  # the initialisation is in the checkpoint
    assert outcome(*done) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["run.pt"]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    history, model = train(RECIPE, tmp_path / "new" / "run.pt")
    again, same = train(RECIPE, tmp_path / "new" / "run.pt", batches=stopping_at(1), evaluate=lambda model: {})
    assert again == history
    assert outcome(again, same) == outcome(history, model)


def test_a_diverged_run_stays_diverged(tmp_path: Path) -> None:
    def poisoned(step: int) -> tuple[Tensor, ...]:
        x, y = batches(step)
        return (x * float("nan") if step == 30 else x), y

    history, _ = train(RECIPE, tmp_path / "run.pt", batches=poisoned)
    assert history.diverged_at == 31
    assert train(RECIPE, tmp_path / "run.pt", batches=poisoned)[0] == history


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (replace(RECIPE, lr=0.5), {}, r"lr: 0\.02 there, 0\.5 here"),
        (RECIPE, {"seed": 4}, "seed: 3 there, 4 here"),
        (RECIPE, {"model": nn.Sequential(nn.Flatten(), nn.Linear(108, 2))}, "model: .* there"),
        (RECIPE, {"batches": lambda step: batches(step + 1)}, "first batch: .* there"),
    ],
    ids=["recipe", "seed", "model", "data"],
)
def test_a_checkpoint_of_another_run_is_refused(
    recipe: Recipe, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    train(RECIPE, tmp_path / "run.pt")
    before = (tmp_path / "run.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"written by another training run \({message}"):
        train(recipe, tmp_path / "run.pt", **changes)
    assert (tmp_path / "run.pt").read_bytes() == before


def test_a_file_that_is_no_checkpoint_or_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    train(RECIPE, path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[random.randrange(len(flipped))] ^= 1
    for content in (b"", b"text", whole[:100], whole[:-1], bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no checkpoint of a training run, or damaged: delete it"):
            train(RECIPE, path)
    path.write_bytes(whole)
    assert train(RECIPE, path)[0].steps == RECIPE.steps
    assert torch.load(path, weights_only=True)["history"]["steps"] == RECIPE.steps


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_the_checkpoint_before_and_the_training_alone(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = outcome(*train(RECIPE, None))
    path = tmp_path / "run.pt"
    with pytest.raises(Stop):
        train(RECIPE, path, batches=stopping_at(20))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        history, model = train(RECIPE, path)
    assert outcome(history, model) == expected
    assert history.events == [
        f"checkpoint after update 21 not written ({os.strerror(number)}): training goes on, the one before stays"
    ]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {history.events[0]}"]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert outcome(*train(RECIPE, path)) == expected


def test_any_other_failure_of_the_disk_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        train(RECIPE, tmp_path / "run.pt")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if mount is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    """One checkpoint fits, a second beside it does not, so only the first is ever written."""
    expected = outcome(*train(RECIPE, None))
    path = small_disk / "run.pt"
    ballast = small_disk / "ballast"
    with pytest.raises(Stop):
        train(RECIPE, path, batches=stopping_at(EVERY + 1))
    before = path.read_bytes()
    ballast.write_bytes(b"x" * (64 * 1024 - 2 * len(before)))  # pages are rounded up: less than one checkpoint is left
    history, model = train(RECIPE, path)
    assert outcome(history, model) == expected
    assert len(history.events) == 1
    assert "No space left on device" in history.events[0]
    assert path.read_bytes() == before
    ballast.unlink()
    assert outcome(*train(RECIPE, path)) == expected


def test_kill_9_at_random_instants(tmp_path: Path) -> None:
    """Four runs killed from outside, wherever they are, and one in the middle of writing; the sixth finishes."""
    kills = [start + random.SystemRandom().randrange(12) for start in (1, 26, 51, 76)]  # no run starts past its kill
    _, expected = in_another_process(tmp_path / "undisturbed", [])
    told, killed = in_another_process(tmp_path / "killed", kills)
    assert told["killed by"] == [signal.SIGKILL] * 5, kills
    assert told["went on at"] == sorted(told["went on at"]), kills
    assert told["went on at"][0] == 1 < told["went on at"][-1], kills
    assert killed == expected, kills


def in_another_process(folder: Path, kills: list[int]) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """What the killer tells and the last of its children leaves; on one thread, for sums in another order are other
    bits, and what ran before in this process may have changed how many there are.
    """
    folder.mkdir()
    arguments = [sys.executable, __file__, str(folder), *map(str, kills)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, (kills, done.stderr)
    return json.loads(done.stdout), json.loads((folder / "outcome.json").read_text())


def victim(folder: Path, pipe: int, wall: int, dies_writing: bool) -> None:
    """Train, tell every step, and wait at the wall for the kill; or be killed between writing and renaming."""
    if dies_writing:
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]

    def told(step: int) -> tuple[Tensor, ...]:
        os.write(pipe, step.to_bytes(2, "big"))
        if step == wall:
            time.sleep(600)
        return batches(step)

    done = train(RECIPE, folder / "run.pt", batches=told)
    (folder / "outcome.json").write_text(json.dumps(outcome(*done)))


def killer(folder: Path, kills: list[int]) -> dict[str, list[int]]:
    signals, resumed = [], []
    undisturbed = (-1, -1, False)
    plans = [*((kill, kill + EVERY, False) for kill in kills), (-1, -1, True), undisturbed] if kills else [undisturbed]
    for kill, wall, dies_writing in plans:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            victim(folder, writer, wall, dies_writing)
            os._exit(0)
        os.close(writer)
        steps = []
        while told := os.read(reader, 2):
            steps.append(int.from_bytes(told, "big"))
            if steps[-1] == kill:
                time.sleep(random.uniform(0, 0.02))
                os.kill(child, signal.SIGKILL)
        os.close(reader)
        signals.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        resumed.append(steps[1])  # step 0 is always asked for, to know the data by
        if dies_writing:
            staged = folder / ".run.pt.tmp"
            os.truncate(staged, staged.stat().st_size // 2)  # what a power failure may leave of it
    assert signals.pop() == 0
    return {"killed by": [-number for number in signals], "went on at": resumed}


if __name__ == "__main__":
    print(json.dumps(killer(Path(sys.argv[1]), [int(kill) for kill in sys.argv[2:]])))
