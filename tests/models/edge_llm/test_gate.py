"""The gate lets rounding pass and no mistake: each one a decoder is known to make is planted and must be seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from archbench.checks import Wrong
from archbench.models.edge_llm import EdgeCase, make_inputs, prefix
from archbench.models.edge_llm import _reference as reference
from archbench.models.edge_llm._gate import agreement, bound, gate
from archbench.models.edge_llm._weights import Weights, open_weights
from archbench.models.edge_llm._weights_blocks import Floats

pytest.importorskip("gguf", reason="model files are written with the package gguf")

EXACT = EdgeCase("tiny_random", "tg", 6, 50, weights="f32")
QUANTISED = EdgeCase("tiny_random", "tg", 6, 50)


class Other:
    """Weights that are not the case's: another config, or a change to one tensor."""

    def __init__(self, weights: Weights, change: Callable[[str, Floats], Floats] | None = None, **config: Any) -> None:
        self._weights, self._change = weights, change or (lambda name, found: found)
        self.config = replace(weights.config, **config)
        self.output = weights.output

    def floats(self, name: str, rows: Any = slice(None)) -> Floats:
        found = self._weights.floats(name, rows)
        return self._change(name, found.copy()) if isinstance(rows, slice) else found


def answer(case: EdgeCase, weights: Any, memory: Any = None) -> Floats:
    """What a decoder with these weights, and this memory of the prefix, says."""
    (tokens,) = make_inputs(case, 0, "cpu")
    if memory is None:
        memory = reference.evaluate(weights, prefix(case), ())[1]
    hidden, _ = reference.evaluate(weights, tokens, memory)
    return reference.vocabulary(weights, hidden).astype(np.float32)


def judged(case: EdgeCase, logits: Any) -> float:
    return gate(case, make_inputs(case, 0, "cpu"), logits)


def right_memory(case: EdgeCase) -> Any:
    return reference.evaluate(open_weights(case), prefix(case), ())[1]


def a_layer_skipped(case: EdgeCase) -> Floats:
    return answer(case, Other(open_weights(case), layers=2))


def another_rotary_base(case: EdgeCase) -> Floats:
    return answer(case, Other(open_weights(case), rope_theta=100_000.0))


def another_group_of_heads(case: EdgeCase) -> Floats:
    """Query heads take turns with the key heads instead of standing in groups."""

    def taken_in_turn(name: str, found: Floats) -> Floats:
        if name.endswith("attn_q.weight"):
            return found.reshape(4, 64, -1)[[0, 2, 1, 3]].reshape(found.shape)
        return found

    return answer(case, Other(open_weights(case), taken_in_turn))


def a_norm_without_weights(case: EdgeCase) -> Floats:
    return answer(case, Other(open_weights(case), lambda n, x: np.ones_like(x) if n == "blk.1.ffn_norm.weight" else x))


def no_epsilon(case: EdgeCase) -> Floats:
    return answer(case, Other(open_weights(case), norm_eps=0.0))


def a_block_with_another_scale(case: EdgeCase) -> Floats:
    def doubled(name: str, found: Floats) -> Floats:
        if name == "blk.1.ffn_down.weight":
            found[17, 32:64] *= 2
        return found

    return answer(case, Other(open_weights(case), doubled))


def a_block_of_the_output_with_another_scale(case: EdgeCase) -> Floats:
    def doubled(name: str, found: Floats) -> Floats:
        if name == "output.weight":
            found[17, 32:64] *= 4
        return found

    class Rows(Other):
        def floats(self, name: str, rows: Any = slice(None)) -> Floats:
            return doubled(name, super().floats(name, rows).copy())

    return answer(case, Rows(open_weights(case)))


def gate_and_up_exchanged(case: EdgeCase) -> Floats:
    weights = open_weights(case)
    names = {"blk.2.ffn_gate.weight": "blk.2.ffn_up.weight", "blk.2.ffn_up.weight": "blk.2.ffn_gate.weight"}
    return answer(case, Other(weights, lambda n, x: weights.floats(names[n]) if n in names else x))


def the_last_cached_token_missing(case: EdgeCase) -> Floats:
    return _with_positions(case, [(keys[:, :-1], values[:, :-1]) for keys, values in right_memory(case)])


def _with_positions(case: EdgeCase, memory: Any) -> Floats:
    """New tokens at their right positions behind a memory that has lost some: turned keys and queries do not change."""
    turns = reference._turns
    lost = case.depth - memory[0][0].shape[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_turns", lambda positions, *rest: turns(positions + lost, *rest))
        return answer(case, open_weights(case), tuple(memory))


def positions_from_zero(case: EdgeCase) -> Floats:
    """A decoder that counts from the first token of the call."""
    turns = reference._turns
    memory = right_memory(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_turns", lambda positions, *rest: turns(positions - case.depth, *rest))
        return answer(case, open_weights(case), memory)


def keys_one_position_off(case: EdgeCase) -> Floats:
    memory = tuple((np.roll(keys, 1, axis=1), values) for keys, values in right_memory(case))
    return answer(case, open_weights(case), memory)


def rotary_halves(case: EdgeCase) -> Floats:
    def halves(x: Any, turn: Any) -> Any:
        half = x.shape[-1] // 2
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate([turned.real, turned.imag], axis=-1).astype(x.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_rotate", halves)
        return answer(case, open_weights(case))


def a_token_sees_the_next(case: EdgeCase) -> Floats:
    attention = reference._attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_attention", lambda q, k, v, before: attention(q, k, v, before + 1))
        return answer(case, open_weights(case))


def a_token_does_not_see_itself(case: EdgeCase) -> Floats:
    attention = reference._attention
    memory = right_memory(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_attention", lambda q, k, v, before: attention(q, k, v, before - 1))
        return answer(case, open_weights(case), memory)


EVERYWHERE = (
    a_layer_skipped,
    another_rotary_base,
    another_group_of_heads,
    a_norm_without_weights,
    a_block_of_the_output_with_another_scale,
    gate_and_up_exchanged,
    the_last_cached_token_missing,
    positions_from_zero,
    keys_one_position_off,
    rotary_halves,
    a_token_sees_the_next,
    a_token_does_not_see_itself,
)
SMALL = (no_epsilon, a_block_with_another_scale)  # one or three percent of the answer: less than int8 may be off


@pytest.mark.parametrize("mistake", EVERYWHERE + SMALL, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_seen_beside_float32_weights(mistake: Callable[[EdgeCase], Floats]) -> None:
    with pytest.raises(Wrong, match="of their spread, allowed are"):
        judged(EXACT, mistake(EXACT))


@pytest.mark.parametrize("mistake", SMALL, ids=lambda mistake: mistake.__name__)
def test_a_small_mistake_is_seen_beside_float16_weights(mistake: Callable[[EdgeCase], Floats]) -> None:
    with pytest.raises(Wrong, match="of their spread, allowed are"):
        judged(replace(EXACT, weights="f16"), mistake(replace(EXACT, weights="f16")))


@pytest.mark.parametrize("mistake", EVERYWHERE, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_seen_beside_quantised_weights(mistake: Callable[[EdgeCase], Floats]) -> None:
    with pytest.raises(Wrong, match=r"of their spread, allowed are|is off by"):
        judged(QUANTISED, mistake(QUANTISED))


def test_right_answers_pass_with_their_error() -> None:
    for case in (EXACT, QUANTISED):
        logits = answer(case, open_weights(case))
        assert judged(case, logits) < 1e-6
        noise = np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
        share = 0.7 * bound(case).relative
        assert judged(case, logits + share * noise * logits.std(axis=1, keepdims=True)) == pytest.approx(share, rel=0.1)


def test_four_times_the_error_that_rounding_makes_is_too_much() -> None:
    logits = answer(QUANTISED, open_weights(QUANTISED))
    noise = np.random.default_rng(0).standard_normal(logits.shape).astype(np.float32)
    with pytest.raises(Wrong, match=r"the logits are off by 0\.08\d+ of their spread, allowed are 0\.0559"):
        judged(QUANTISED, logits + 0.083 * noise * logits.std(axis=1, keepdims=True))


def test_a_row_alone_may_be_off_by_twice_what_many_may_and_beside_float32_by_no_more() -> None:
    off = np.random.default_rng(2).standard_normal((100, 100)) / WANT.std()
    want = np.concatenate([WANT] * 25)
    agreement(want[:1] + 0.06 * off[:1], want[:1], bound(QUANTISED))
    with pytest.raises(Wrong, match=r"the logits are off by 0\.0\d+ of their spread, allowed are 0\.0436"):
        agreement(want + 0.06 * off, want, bound(QUANTISED))
    with pytest.raises(Wrong, match=r"off by 0\.0001\d+ of their spread, allowed are 0\.0001 "):
        agreement(want[:1] + 1.5e-4 * off[:1], want[:1], bound(EXACT))


def test_a_cache_in_int8_allows_what_int8_does() -> None:
    for weights in ("f32", "f16", "q4_0"):
        assert bound(replace(EXACT, weights=weights, kv="q8_0")) == bound(QUANTISED)


WANT = np.random.default_rng(1).standard_normal((4, 100))


def test_one_logit_one_row_a_shift_and_a_rank_are_seen_though_the_whole_is_near() -> None:
    allowed = bound(QUANTISED)
    agreement(WANT, WANT, allowed)
    logit, row, shift = WANT.copy(), WANT.copy(), WANT + 0.3
    logit[2, 17] += 0.6
    row[1] *= 1.09
    with pytest.raises(Wrong, match=r"a logit is off by 0\.[56].*worst is \[2, 17\]"):
        agreement(logit, WANT, allowed)
    with pytest.raises(Wrong, match=r"the logits of row 1 are off by 0\.09"):
        agreement(np.concatenate([row, *[WANT] * 4]), np.concatenate([WANT] * 5), allowed)
    agreement(shift, WANT, allowed)  # no probability differs
    with pytest.raises(Wrong, match=r"row \d is shifted by 0\.\d+ "):
        agreement(WANT + 0.7, WANT, allowed)
    flat = np.linspace(0, 1e-3, 50_000)[None]
    flat[0, :40_000] += np.linspace(-5, 0, 40_000)
    other = flat.copy()
    other[0, 45_000] = 2e-3
    with pytest.raises(Wrong, match=r"the best token is 45000 .* number 5000"):
        agreement(other, flat, allowed)


def test_first_rows_of_a_trained_model_may_be_lost_to_rounding_and_no_others() -> None:
    trained = EdgeCase("smollm2_135m", "tg", 32)
    assert bound(trained).first == 8
    assert bound(replace(trained, depth=5)).first == 3
    for case in (replace(trained, depth=8), replace(trained, weights="f16"), replace(trained, phase="pp"), QUANTISED):
        assert bound(case).first == 0, case
    want = np.random.default_rng(3).standard_normal((12, 200))
    lost = want.copy()
    lost[6] += 0.9 * np.random.default_rng(4).standard_normal(200)
    assert agreement(lost, want, bound(trained)) == 0
    with pytest.raises(Wrong, match=r"the logits are off|row 8 "):
        agreement(np.roll(lost, 2, axis=0), np.roll(want, 2, axis=0), bound(trained))
    with pytest.raises(Wrong, match="row 6 have nothing to do with the reference's"):
        agreement(np.concatenate([want[:6], want[7:8], want[7:]]), want, bound(trained))
    with pytest.raises(Wrong, match="the logits"):
        agreement(lost[6:7], want[6:7], bound(trained))  # a row alone is judged


def test_what_is_no_answer_is_said() -> None:
    nan = np.zeros((6, 512), np.float32)
    nan[3, 7] = np.nan
    for logits, message in (
        (np.zeros((5, 512), np.float32), r"shape \(5, 512\), expected \(6, 512\)"),
        (nan, r"logits\[3, 7\] is nan, expected"),
        ((nan, nan), "returned 2 arrays"),
        (None, "is a builtins.NoneType|returned 0 arrays"),
    ):
        with pytest.raises(Wrong, match=message):
            judged(EXACT, logits)
