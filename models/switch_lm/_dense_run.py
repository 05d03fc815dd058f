"""The dense model's run of a seed, with which every contender's run of that seed is compared.

It is made once on a host and kept in the user's cache. The baseline's own cell makes it anew, so that its times are of
that day; the numbers it finds are the same to the last bit.
"""

from __future__ import annotations

from dataclasses import asdict, replace

from archbench.checks import Wrong
from archbench.models._kept import DAMAGED, kept, name_of
from archbench.models.switch_lm import SwitchCase, _model, _text
from archbench.models.switch_lm._model import LanguageModel, dense
from archbench.models.switch_lm._text import evaluation, loss, text_of
from archbench.models.train import History, Recipe, fit
from archbench.track import Device

EVALUATIONS = 20  # in a run, besides the one before the first step


def recipe_of(case: SwitchCase) -> Recipe:
    return Recipe(
        steps=case.steps,
        lr=case.lr,
        optimizer="adamw",
        betas=(0.9, 0.98),
        weight_decay=0.01,
        warmup_steps=case.steps // 10,
        clip_norm=1.0,
        precision=case.precision,  # type: ignore[arg-type]
        eval_every=max(1, case.steps // EVALUATIONS),
    )


def dense_run(case: SwitchCase, seed: int, device: Device, *, anew: bool = False) -> tuple[LanguageModel, History]:
    """The trained model and its history. Raises Wrong where it diverged: there is nothing to compare with."""
    task, model = text_of(case), dense(case)(seed)
    watch = evaluation(case, case.curve_rows, device)
    with kept("switch_lm", f"{case.data}-{seed}-{identity(case, seed, device)}") as path:
        if anew:
            path.unlink(missing_ok=True)
        found = path.exists()
        try:
            history = fit(
                model, loss, task.batches(seed), watch, recipe_of(case), seed=seed, device=device, checkpoint=path
            )
        except DAMAGED:
            if not found:
                raise
            path.unlink()  # damaged: it is made again
            history = None
    if history is None:
        return dense_run(case, seed, device)
    if history.diverged:
        raise Wrong(f"the dense model of seed {seed} diverged: there is nothing to compare with")
    return model, history


def identity(case: SwitchCase, seed: int, device: Device) -> str:
    """All that decides the dense model's run; what is asked of experts does not."""
    fixed = replace(case, capacity_factor=1.0, target=1.0, seeds=1)
    task = text_of(case)
    parts = [asdict(fixed), seed, asdict(recipe_of(case)), task.train.origin.fingerprint, task.test.origin.fingerprint]
    return name_of(parts, [_model, _text], device)
