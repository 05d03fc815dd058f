"""A mixture of experts to spoil: every expert for every token, weighted by a table; tests hand it a mistake to make."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from archbench.kernels.moe_ffn import TRACK, MoeCase, _routing
from archbench.kernels.moe_ffn._layers import answer, expert
from archbench.kernels.moe_ffn._routing import Routing

Route = Callable[..., Routing]


def table(case: MoeCase, routing: Routing) -> Tensor:
    """(N, E): weights, 0 where an expert is not asked."""
    empty = torch.zeros(case.tokens, case.experts, dtype=routing.weight_A.dtype)
    return empty.index_put((routing.token_A, routing.expert_A), routing.weight_A)


def in_turn(
    case: MoeCase,
    x: Tensor,
    router: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    uniform: Tensor,
    *,
    route: Route = _routing.route,
    one: Callable[[Tensor, Tensor, Tensor], Tensor] = expert,
) -> Any:
    """A loop over experts with a way to route and an expert of the test's own."""
    routing = route(case, x, router, uniform)
    said = torch.stack([one(x.flatten(0, 1), w_in[e], w_out[e]) for e in range(case.experts)], 1)
    return answer(case, (table(case, routing).unsqueeze(-1) * said).sum(1).to(x.dtype), routing)


def judged(case: MoeCase, call: Any, seed: int = 0) -> float:
    inputs = TRACK.make_inputs(case, seed, "cpu")
    return TRACK.gate(case, inputs, TRACK.workload(case, partial(call, case))(*inputs))
