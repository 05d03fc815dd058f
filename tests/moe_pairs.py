"""Contenders of ``moe_ffn`` against ``sorted_grouped``, and that one against bare matrix products, in one process.

``archbench run`` pairs everything with ``dense``, so two contenders meet in two runs only. Here all of them take turns,
in random order, with the matrix products alone: the router's, and each expert's two on rows that are sorted already,
once by ``torch.mm``, written into tensors that are there already, and once by oneDNN. Each answer passes the gate
first, and the largest difference from the answers of ``sorted_grouped`` is printed. Run by hand, it is no part of the
test suite:

    python tests/moe_pairs.py st_moe mixture_of_experts transformers_mixtral \\
        --case b8-t256-d256-h896-e8-k2-topk-fp32-fwd
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from archbench.checks import flatten
from archbench.discovery import load_contender
from archbench.hardware.cpu import usable_cores
from archbench.kernels.moe_ffn import TRACK, MoeCase
from archbench.kernels.moe_ffn._products import product
from archbench.kernels.moe_ffn._routing import logits_of, route
from archbench.stats import hodges_lehmann

OWN = "sorted_grouped"
INPUTS = 4
PAUSE_S = 0.02  # threads of a pool that has just worked spin for a while and would take the next one's cores
Inputs = tuple[Tensor, ...]


def prepared(case: MoeCase, name: str) -> Callable[[Inputs], Any]:
    """A contender's work, right at this case."""
    found = load_contender(TRACK.name, name)
    if found.entry is None:
        raise SystemExit(f"{name}: {found.status}: {found.reason}")
    work = TRACK.workload(case, found.entry.build(case))
    inputs = TRACK.make_inputs(case, 99, "cpu")
    gate = found.entry.gate or TRACK.gate
    print(f"{name}: relative error {gate(case, inputs, work(*inputs)):.1e}", flush=True)
    return lambda inputs: work(*inputs)


class Products:
    """Nothing but the matrix products of a forward, or also of a backward, for the routing of each set of inputs."""

    def __init__(self, case: MoeCase, sets: list[Inputs], by: Callable[[Tensor, Tensor, Tensor], Any]) -> None:
        self._case, self._by = case, by
        self._rows: dict[int, list[int]] = {}
        for inputs in sets:
            x_BTD, router_ED, _, _, uniform_BT, *_ = inputs
            self._rows[id(inputs)] = route(case, x_BTD, router_ED, uniform_BT).counts_E.tolist()
        total = max(sum(counts) for counts in self._rows.values())
        like = sets[0][0]
        wide = {"x": case.dim, "h": 2 * case.hidden, "q": case.hidden, "o": case.dim, "dq": case.hidden}
        self._kept = {name: torch.randn(total, columns).to(like.dtype) for name, columns in wide.items()}
        self._dw_in, self._dw_out = (torch.empty_like(weight) for weight in sets[0][2:4])

    def __call__(self, inputs: Inputs) -> None:
        x_BTD, router_ED, w_in_EFD, w_out_EHD, *_ = inputs
        logits_of(x_BTD, router_ED)
        start = 0
        for expert, count in enumerate(self._rows[id(inputs)]):
            if not count:
                continue
            x, h, q, o, dq = (tensor[start : start + count] for tensor in self._kept.values())
            start += count
            self._by(x, w_in_EFD[expert], h)
            self._by(q, w_out_EHD[expert].T, o)
            if self._case.backward:
                self._by(o, w_out_EHD[expert], dq)
                self._by(h, w_in_EFD[expert].T, x)
                self._by(q.T, o.T, self._dw_out[expert])
                self._by(h.T, x.T, self._dw_in[expert])


def by_mm(a_MK: Tensor, b_NK: Tensor, out_MN: Tensor) -> None:
    torch.mm(a_MK, b_NK.T, out=out_MN)


def by_product(a_MK: Tensor, b_NK: Tensor, out_MN: Tensor) -> None:
    """By oneDNN, which has no place for an answer; gradients of weights by torch.mm, which is faster there."""
    if a_MK.is_contiguous():
        product(a_MK, b_NK)
    else:
        by_mm(a_MK, b_NK, out_MN)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("contenders", nargs="*", help="compared with sorted_grouped")
    parser.add_argument("--case", required=True, type=TRACK.case)
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    case: MoeCase = given.case
    torch.set_num_threads(case.threads or usable_cores())
    calls = {name: prepared(case, name) for name in (OWN, *given.contenders)}
    sets = [TRACK.make_inputs(case, seed, "cpu") for seed in range(INPUTS)]
    own = list(flatten(calls[OWN](sets[0])).values())
    for name in given.contenders:
        pairs = zip(own, flatten(calls[name](sets[0])).values(), strict=False)
        apart = max(
            float((one.double() - other.double()).abs().max()) for one, other in pairs if one.shape == other.shape
        )
        print(f"{name}: its answers differ by {apart:.1e} at most", flush=True)
    with torch.no_grad():
        calls |= {
            "products by torch.mm": Products(case, sets, by_mm),
            "products by oneDNN": Products(case, sets, by_product),
        }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(given.turns + 1):
        inputs = sets[turn % INPUTS]
        for name in random.sample(list(calls), len(calls)):
            time.sleep(PAUSE_S)
            with torch.no_grad():
                calls[name](inputs)
                began = time.perf_counter()
                calls[name](inputs)
            seconds[name].append(time.perf_counter() - began)
    for name, taken in seconds.items():
        logs = [math.log(b / a) for a, b in zip(seconds[OWN][1:], taken[1:], strict=True)]  # the first turn warms up
        ratio = hodges_lehmann(logs).exp()
        middle = sorted(taken[1:])[given.turns // 2]
        interval = f"{ratio.value:.3f} (95 %: {ratio.lo:.3f} to {ratio.hi:.3f})"
        print(f"{name}: {middle * 1e3:.2f} ms; its time over that of {OWN}: {interval}")


if __name__ == "__main__":
    main()
