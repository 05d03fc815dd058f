"""Experts on several ranks answer as one process does, and send what the formula says."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.kernels.moe_ffn import TRACK, MoeCase
from archbench.kernels.moe_ffn._routing import route

RANKS = 4
TOPK = MoeCase(4, 13, 8, 6, 8, dtype="fp64", backward=True)
GSHARD = MoeCase(4, 15, 8, 6, 4, router="gshard", capacity_factor=1.0, dtype="fp64", backward=True)
SWITCH = MoeCase(4, 15, 8, 6, 4, 1, router="switch", capacity_factor=1.0, skew=1.0, dtype="fp64", backward=True)
CHOICE = MoeCase(4, 15, 8, 6, 4, router="expert_choice", capacity_factor=1.0, dtype="fp64", backward=True)
ONE_EXPERT = MoeCase(4, 9, 8, 6, 4, 1, skew=60.0, dtype="fp64", backward=True)
ONE_EXPERT_FLOAT = replace(ONE_EXPERT, dtype="fp32")  # products by oneDNN, which other ranks have no rows for
FLOAT = MoeCase(4, 13, 8, 6, 8, dtype="fp32", backward=True)
BF16 = MoeCase(4, 13, 16, 24, 4, router="gshard", capacity_factor=1.25, dtype="bf16", backward=True)
UNEVEN = MoeCase(4, 13, 8, 6, 6, dtype="fp64", backward=True)
CASES = {
    "topk": TOPK,
    "gshard": GSHARD,
    "switch": SWITCH,
    "expert choice": CHOICE,
    "one expert gets all": ONE_EXPERT,
    "one expert gets all, fp32": ONE_EXPERT_FLOAT,
    "fp32": FLOAT,
    "bf16": BF16,
}
SPREADS = {"one rank": (4,), "two": (2, 2), "four": (1, 1, 1, 1), "a rank without tokens": (0, 3, 1, 0)}
PLAN = {(name, spread): (case, SPREADS[spread]) for name, case in CASES.items() for spread in SPREADS}
REFUSED = {("refused", "four"): (UNEVEN, SPREADS["four"])}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """By rank: what it says to each item of the plan."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(PLAN | REFUSED, folder / "plan")
    program = str(Path(__file__).with_name("expert_ranks.py"))
    process = subprocess.Popen(
        [sys.executable, program, str(folder), str(RANKS)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # one name for it and its ranks
    )
    try:
        said = process.communicate(timeout=300)[0]
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    assert process.returncode == 0, said
    return [torch.load(folder / str(rank)) for rank in range(RANKS)]


def together(case: MoeCase, parts: list[Any]) -> tuple[Any, ...]:
    """The ranks' answers as those of one process."""
    y, loss, dropped, *gradients = zip(*parts, strict=True)
    whole = [torch.cat(y)]
    if case.router != "topk":
        whole += [torch.stack(loss).sum(), torch.stack(dropped).sum()]
    if case.backward:
        dx, drouter, dw_in, dw_out = gradients
        whole += [torch.cat(dx), torch.stack(drouter).sum(0), torch.cat(dw_in), torch.cat(dw_out)]
    return tuple(whole)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("name", "spread"), PLAN)
def test_outputs_and_gradients_are_those_of_one_process(
    answers: list[Any], name: str, spread: str, backward: bool
) -> None:
    case, groups = PLAN[name, spread]
    inputs = TRACK.make_inputs(case, 1, "cpu")
    case = replace(case, backward=backward)
    parts = [said[name, spread][backward] for said in answers[: len(groups)]]
    error = TRACK.gate(case, inputs if backward else inputs[:-1], together(case, parts))
    assert error < {"fp64": 1e-14, "fp32": 1e-6, "bf16": 2e-2}[case.dtype]


@pytest.mark.parametrize(("name", "spread"), PLAN)
def test_bytes_on_the_wire_are_those_of_the_formula(answers: list[Any], name: str, spread: str) -> None:
    case, groups = PLAN[name, spread]
    x, router, *_, uniform, _ = TRACK.make_inputs(case, 1, "cpu")
    routing = route(case, x, router, uniform)
    owner_B = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(groups))
    remote = int((owner_B[routing.token_A // case.length] != routing.expert_A * len(groups) // case.experts).sum())
    rows, counts = remote * case.dim * x.element_size(), 8 * case.experts * (len(groups) - 1)
    forward, whole = (sum(said[name, spread][way] for said in answers[: len(groups)]) for way in (2, 3))
    assert (remote == 0) == (len(groups) == 1)
    assert forward == 2 * rows + counts
    assert whole == 4 * rows + counts


@pytest.mark.parametrize(("case", "drops"), [(ONE_EXPERT, False), (GSHARD, True), (SWITCH, True)])
def test_the_cases_are_what_they_are_there_for(case: MoeCase, drops: bool) -> None:
    x, router, *_, uniform, _ = TRACK.make_inputs(case, 1, "cpu")
    routing = route(case, x, router, uniform)
    assert (int(routing.dropped) > 0) == drops
    assert (routing.counts_E.tolist() == [case.tokens, 0, 0, 0]) == (case is ONE_EXPERT)


def test_experts_that_cannot_be_spread_are_refused(answers: list[Any]) -> None:
    assert [said["refused", "four"] for said in answers] == ["experts is 6: 4 ranks need a multiple of 4"] * RANKS
