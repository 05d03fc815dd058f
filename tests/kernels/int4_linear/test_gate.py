"""The gate of int4_linear: all hold the same weights, and what is off by more than the kind allows is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from archbench.checks import Wrong
from archbench.kernels.int4_linear import Int4Case
from archbench.kernels.int4_linear._weights import Quantised, matrices, short

torch = pytest.importorskip("torch", reason="no torch installed")
gating = pytest.importorskip("archbench.kernels.int4_linear._gate", reason="no torch installed")

CASE = Int4Case(5, 256, 48, layers=2)


def answer(case: Int4Case, x: Any, found: list[Quantised]) -> Any:
    """y of given matrices, in float64 on the way."""
    y = [x.double() @ torch.from_numpy(matrix.dense()).double().T for matrix in found]
    return torch.stack(y).to(x.dtype)


def inputs(case: Int4Case) -> Any:
    return gating.make_inputs(case, 3, "cpu")[0]


def judge(case: Int4Case, x: Any, y: Any) -> float:
    error: float = gating.gate(case, (x,), y)
    return error


def test_weights_are_the_same_each_time_and_exact_in_short_formats() -> None:
    first, again = matrices(CASE), matrices(CASE)
    assert len(first) == 2
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.codes, other.codes)
        assert np.array_equal(one.scales, other.scales)
        assert np.array_equal(one.scales, one.scales.astype(np.float16).astype(np.float32))
        assert torch.equal(torch.from_numpy(one.scales).bfloat16().float(), torch.from_numpy(one.scales))
        assert set(np.unique(one.codes)) == set(range(16))
    assert not np.array_equal(first[0].codes, first[1].codes)


def test_short_rounds_to_eight_bits_and_keeps_normal_halves() -> None:
    given = np.array([1.0, 1.0 + 2**-9, 1.0 + 3 * 2**-9, 1e-9])
    assert short(given).tolist() == [1.0, 1.0, 1.0 + 2**-7, 2**-14]


def test_dense_and_pairs_are_the_codes() -> None:
    matrix = Quantised(np.array([[0, 15, 8, 9]], np.uint8), np.array([[0.5, 2.0]], np.float32))
    assert matrix.dense().tolist() == [[-4.0, 3.5, 0.0, 2.0]]
    assert matrix.pairs().tolist() == [[0xF0, 0x98]]


@pytest.mark.parametrize("kind", ["w4a32", "w4a16", "w4a8"])
def test_the_product_passes_and_its_error_is_small(kind: str) -> None:
    case = Int4Case(5, 256, 48, kind=kind, layers=2)
    x = inputs(case)
    assert judge(case, x, answer(case, x, matrices(case))) < (4e-3 if kind == "w4a16" else 1e-7)


def test_activations_of_eight_bits_pass_where_allowed_and_nowhere_else() -> None:
    x = inputs(CASE)
    scale = x.abs().amax(1, keepdim=True) / 127
    y = answer(CASE, (x / scale).round() * scale, matrices(CASE))
    assert 1e-3 < judge(CASE, x, y) < 0.1
    with pytest.raises(Wrong, match="the bound of w4a32"):
        judge(Int4Case(5, 256, 48, kind="w4a32", layers=2), x, y)


def four_bits(x: Any) -> Any:
    scale = x.abs().amax(1, keepdim=True) / 7
    return (x / scale).round() * scale


MISTAKES: dict[str, Callable[[Quantised], Quantised]] = {
    "another zero": lambda m: Quantised(np.minimum(m.codes + 1, 15).astype(np.uint8), m.scales),
    "halves of a byte exchanged": lambda m: Quantised(
        m.codes.reshape(len(m.codes), -1, 2)[:, :, ::-1].reshape(m.codes.shape), m.scales
    ),
    "the neighbour's scale": lambda m: Quantised(m.codes, np.roll(m.scales, 1, axis=1)),
    "one scale for a row": lambda m: Quantised(m.codes, np.repeat(m.scales[:, :1], m.scales.shape[1], axis=1)),
    "the last group forgotten": lambda m: Quantised(m.codes, m.scales * (np.arange(m.scales.shape[1]) < 7)),
    "three bits": lambda m: Quantised(m.codes & 14, m.scales),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_with_the_weights_is_refused(mistake: str) -> None:
    x = inputs(CASE)
    wrong = [MISTAKES[mistake](matrix) for matrix in matrices(CASE)]
    with pytest.raises(Wrong, match=r"output\[0, \d, \d+\] is .* expected .* the bound of w4a8"):
        judge(CASE, x, answer(CASE, x, wrong))


def test_activations_of_four_bits_are_refused() -> None:
    x = inputs(CASE)
    with pytest.raises(Wrong, match="the bound of w4a8"):
        judge(CASE, x, answer(CASE, four_bits(x), matrices(CASE)))


LONG = Int4Case(1, 4096, 1024)  # so many terms that the bound of an output hides what a group adds to it


def in_blocks(x: Any) -> Any:
    """Rounded to 8 bits in blocks of 32, far better than the gate asks for."""
    parts = x.reshape(len(x), -1, 32)
    scale = parts.abs().amax(2, keepdim=True) / 127
    return ((parts / scale).round() * scale).reshape(x.shape)


def test_many_terms_rounded_honestly_pass() -> None:
    for seed in range(5):
        (x,) = gating.make_inputs(LONG, seed, "cpu")
        scale = x.abs().amax(1, keepdim=True) / 127
        for rounded in (in_blocks(x), (x / scale).round() * scale):
            judge(LONG, x, answer(LONG, rounded, matrices(LONG)))


@pytest.mark.parametrize("group", [0, 77, 127])
def test_a_group_of_columns_that_is_missing_is_named(group: int) -> None:
    x = inputs(LONG)
    short_x = x.clone()
    short_x[:, 32 * group : 32 * group + 32] = 0
    with pytest.raises(Wrong, match=r"as a whole is off by|columns .* are missing|the bound of w4a8"):
        judge(LONG, x, answer(LONG, in_blocks(short_x), matrices(LONG)))
    x[:, 1000] = short_x[:, 1000] = 60  # a step of rounding that hides the group, but for the group itself
    with pytest.raises(Wrong, match=f"columns {32 * group} to {32 * group + 31} are missing"):
        judge(LONG, x, answer(LONG, short_x, matrices(LONG)))


def test_seven_bits_of_an_activation_or_three_of_a_weight_are_refused_in_long_rows() -> None:
    x = inputs(LONG)
    scale = x.abs().amax(1, keepdim=True) / 63
    with pytest.raises(Wrong, match=r"w4a8|as a whole"):
        judge(LONG, x, answer(LONG, (x / scale).round() * scale, matrices(LONG)))
    with pytest.raises(Wrong, match=r"w4a8|as a whole"):
        judge(LONG, x, answer(LONG, in_blocks(x), [MISTAKES["three bits"](m) for m in matrices(LONG)]))


def test_the_answer_to_another_question_and_half_an_answer_are_refused() -> None:
    x = inputs(CASE)
    (stale,) = gating.make_inputs(CASE, 4, "cpu")
    with pytest.raises(Wrong, match="the bound of w4a8"):
        judge(CASE, x, answer(CASE, stale, matrices(CASE)))
    y = answer(CASE, x, matrices(CASE))
    y[1] = 0
    with pytest.raises(Wrong, match=r"output\[1, "):
        judge(CASE, x, y)


def test_the_second_matrix_is_looked_at_too() -> None:
    x = inputs(CASE)
    first = matrices(CASE)[0]
    with pytest.raises(Wrong, match=r"output\[1, "):
        judge(CASE, x, answer(CASE, x, [first, first]))


def test_other_shapes_kinds_and_numbers_are_refused() -> None:
    x = inputs(CASE)
    y = answer(CASE, x, matrices(CASE))
    with pytest.raises(Wrong, match=r"shape \(1, 5, 48\), expected \(2, 5, 48\)"):
        judge(CASE, x, y[:1])
    with pytest.raises(Wrong, match=r"expected torch\.float32"):
        judge(CASE, x, y.double())
    y[1, 4, 47] = float("nan")
    with pytest.raises(Wrong, match=r"output\[1, 4, 47\] is nan"):
        judge(CASE, x, y)
