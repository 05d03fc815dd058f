"""Models that contenders bring: who looks ahead is found out, who says it is the baseline must be, and who is built in
another way is measured all the same."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from torch import Tensor, nn
from torch.nn import functional as F

from archbench.checks import Wrong
from archbench.models.switch_lm import SwitchCase
from archbench.models.switch_lm._memory import profile
from archbench.models.switch_lm._model import Dense, LanguageModel, Output, dense, switch
from archbench.models.switch_lm._text import text_of
from archbench.models.switch_lm._workload import Training, sees_nothing_ahead
from archbench.models.train import seeded

CASE = SwitchCase("cpython", length=16, width=16, layers=2, heads=2, batch=8, steps=4, curve_rows=8, seeds=1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class NextIsKnown(LanguageModel):
    """The character that follows stands in the same window."""

    def forward(self, tokens_BT: Tensor) -> Output:
        found = super().forward(tokens_BT)
        hint_BTV = F.one_hot(tokens_BT.roll(-1, 1), found.logits_BTV.shape[-1]).to(found.logits_BTV.dtype)
        hint_BTV[:, -1] = 0
        return found._replace(logits_BTV=found.logits_BTV + 12 * hint_BTV)


class LevelOfTheWindow(LanguageModel):
    """Normalised over all positions: a little of everything that follows."""

    def forward(self, tokens_BT: Tensor) -> Output:
        found = super().forward(tokens_BT)
        return found._replace(logits_BTV=found.logits_BTV - found.logits_BTV.mean(1, keepdim=True))


class Other(nn.Module):
    """Says no more than the track asks for."""

    def __init__(self, case: SwitchCase) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(text_of(case).characters, text_of(case).characters))

    def forward(self, tokens_BT: Tensor) -> Output:
        return Output(F.embedding(tokens_BT, self.table), [])

    def operations(self) -> int:
        return 2


def of_kind(kind: type[LanguageModel]) -> Callable[[int], LanguageModel]:
    def make(seed: int) -> LanguageModel:
        with seeded(seed):
            return kind(CASE, text_of(CASE).characters, lambda: Dense(CASE.width, CASE.hidden))

    return make


@pytest.mark.parametrize("kind", [NextIsKnown, LevelOfTheWindow])
def test_a_model_that_looks_ahead_has_no_row(kind: type[LanguageModel]) -> None:
    with pytest.raises(Wrong, match="looks ahead: the last"):
        Training(CASE, of_kind(kind)).run(0, "cpu")


def test_a_model_that_looks_only_at_the_last_character_is_found() -> None:
    model = dense(CASE)(0)

    def last(_model: nn.Module, given: tuple[Tensor], found: Output) -> Output:
        hint_B11 = given[0][:, -1:, None].to(found.logits_BTV)
        return found._replace(logits_BTV=torch.cat((found.logits_BTV[:, :-2], found.logits_BTV[:, -2:] + hint_B11), 1))

    model.register_forward_hook(last)
    with pytest.raises(Wrong, match="the last"):
        sees_nothing_ahead(CASE, model, "cpu")


@pytest.mark.parametrize("capacity_factor", [0.3, 1.0, 16.0])
@pytest.mark.parametrize("router_dtype", [None, torch.bfloat16])
def test_an_experts_room_is_given_away_in_order_so_nobody_looks_ahead(
    capacity_factor: float, router_dtype: torch.dtype | None
) -> None:
    case = replace(CASE, length=64, layers=4, precision="bf16", capacity_factor=capacity_factor)
    for seed in range(5):
        model = switch(case, 8, router_dtype)(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3)
        sees_nothing_ahead(case, model, "cpu")
        assert next(model.parameters()).dtype == torch.float32


def test_a_window_of_one_character_has_nothing_ahead() -> None:
    case = replace(CASE, length=1)
    sees_nothing_ahead(case, dense(case)(0), "cpu")


def test_a_factory_that_says_nothing_is_no_baseline() -> None:
    found = Training(CASE, lambda seed: Other(CASE)).run(0, "cpu").metrics  # type: ignore[arg-type]
    assert found["step_slowdown"] != 1
    assert found["parameters_bytes"] == 4 * text_of(CASE).characters ** 2
    assert not [name for name in found if "formula" in name]


def test_who_says_it_is_the_baseline_must_have_its_parameters() -> None:
    assert Training(CASE, dense(CASE)).is_baseline
    small = replace(CASE, width=CASE.heads)
    liar = Training(CASE, dense(small))
    assert dense(small).is_baseline
    assert not liar.is_baseline
    found = liar.run(0, "cpu").metrics
    assert found["parameters_bytes"] == 4 * sum(p.numel() for p in dense(small)(0).parameters())


def test_a_model_of_another_depth_has_no_formula() -> None:
    found = profile(CASE, switch(replace(CASE, layers=4), 4)(0), "cpu")
    assert found["routing_bytes"] > 0
    assert not [name for name in found if "formula" in name]


def test_a_router_whose_logits_are_not_finite_between_two_readings_ends_a_run_as_diverged() -> None:
    with pytest.raises(Wrong, match="the run of seed 0 diverged: a router"):
        Training(replace(CASE, steps=40, lr=1e30), switch(CASE, 4)).run(0, "cpu")


def test_another_error_of_a_model_is_not_taken_for_divergence() -> None:
    def broken(_seed: int) -> LanguageModel:
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        Training(CASE, broken).run(0, "cpu")  # type: ignore[arg-type]
