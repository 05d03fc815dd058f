"""Places in the rectangles of the one-hot dispatch."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")

from archbench.kernels.moe_ffn import TRACK, MoeCase  # noqa: E402 - the skip comes before what needs torch
from archbench.kernels.moe_ffn._routing import route  # noqa: E402
from archbench.kernels.moe_ffn.einsum_dispatch import places  # noqa: E402

CASES = [
    MoeCase(3, 29, 12, 8, 4),
    MoeCase(3, 29, 12, 8, 4, router="gshard", capacity_factor=1.0),
    MoeCase(2, 31, 12, 8, 4, top_k=1, router="switch", capacity_factor=1.0, skew=2.0),
    MoeCase(2, 31, 12, 8, 4, router="expert_choice", capacity_factor=1.5),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.slug)
def test_every_assignment_has_a_place_of_its_own_and_none_is_left_out_before_it(case: MoeCase) -> None:
    x, router, _, _, uniform = TRACK.make_inputs(case, 5, "cpu")
    routing = route(case, x, router, uniform)
    group_A, token_A, expert_A, place_A = places(case, routing)
    assert torch.equal(group_A * case.length + token_A, routing.token_A)
    assert torch.equal(expert_A, routing.expert_A)
    assert int(place_A.max()) < case.capacity
    taken: dict[tuple[int, int], list[int]] = {}
    for group, expert, place in zip(group_A.tolist(), expert_A.tolist(), place_A.tolist(), strict=True):
        taken.setdefault((group, expert), []).append(place)
    assert all(got == list(range(len(got))) for got in taken.values())
    assert sum(map(len, taken.values())) == len(routing.token_A) > 0


def test_a_full_expert_uses_its_last_place() -> None:
    case = CASES[2]
    x, router, _, _, uniform = TRACK.make_inputs(case, 5, "cpu")
    routing = route(case, x, router, uniform)
    assert int(routing.dropped) > 0
    assert int(places(case, routing)[3].max()) == case.capacity - 1
