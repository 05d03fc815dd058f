"""Mixture of experts: a router sends each token to a few of many feed-forward layers and adds up what they answer.

An expert is a gated feed-forward layer without biases, as in Mixtral: ``(silu(x G^T) * (x U^T)) V`` with G and U one
above the other in ``w_in``. The router's probabilities are ``softmax(x router^T)``, in float32 or better whatever the
rest is computed in. Who goes where is said by the case's router:

- ``topk``: the ``top_k`` likeliest experts, their probabilities scaled to a sum of 1. Nobody is dropped.
- ``gshard``: the two likeliest, scaled the same way; the second with probability ``min(1, 2 g2)``, for which the call
  gets uniform numbers. An expert takes ``case.capacity`` tokens of a group, first choices first, each in the order of
  the tokens; whom it has no room for is dropped.
- ``switch``: the likeliest, weighted by its probability; the same capacity.
- ``expert_choice``: each expert takes the ``case.capacity`` likeliest tokens of a group, weighted by the probability.

A call takes ``x (B, T, D), router (E, D), w_in (E, 2 H, D), w_out (E, H, D), uniform (B, T)`` and returns
``y (B, T, D)`` for ``topk``; else ``y, loss, dropped``: the auxiliary loss, a float32 scalar (balance for gshard;
balance and ``Z_WEIGHT`` times the z-loss for switch; zero for expert choice), and how many found no room, an int64
scalar: assignments for gshard and switch, tokens that no expert chose for expert choice. A second expert that was not
drawn is no drop. y is of x's dtype. The track adds the backward pass where the case asks for it: gradients of x and all
weights, for dy and a loss that counts N sqrt(D): then it moves the router as much as y does.

Letters: B groups, T tokens of a group, N = B T, D width, H hidden units of an expert, F = 2 H, E experts, K experts of
a token, C capacity, A assignments that are kept.

Source: Shazeer et al. 2017, arXiv:1701.06538; Lepikhin et al. 2020, arXiv:2006.16668 (GShard); Fedus et al. 2021,
arXiv:2101.03961 (Switch); Zoph et al. 2022, arXiv:2202.08906 (z-loss); Zhou et al. 2022, arXiv:2202.09368 (expert
choice); Jiang et al. 2024, arXiv:2401.04088 (Mixtral)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from archbench.track import Call, Device, Place, Track

DTYPE_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2}
ROUTERS = ("topk", "gshard", "switch", "expert_choice")
TOP_K = {"gshard": 2, "switch": 1}  # what these routers are defined for
Z_WEIGHT = 0.1  # of the z-loss in the loss of switch, beside a weight of 1 for balance: 1e-3 beside 1e-2 in the papers

MAX_SKEW = 1000.0  # far beyond where all tokens ask the same expert
CPU_FLOPS = 2.5e11  # a call of more is a GPU's work: it would take two cores seconds, and its check a minute


@dataclass(frozen=True)
class MoeCase:
    """One layer and the tokens it meets."""

    groups: int
    length: int  # tokens of a group: capacities are counted in each group by itself
    dim: int
    hidden: int
    experts: int
    top_k: int = 2
    router: str = "topk"
    capacity_factor: float | None = None  # None: dropless
    skew: float = 0.0  # the logit of expert e is shifted by -skew ln(e + 1): 1 is Zipf's law, 0 is balanced
    dtype: str = "fp32"
    backward: bool = False
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.router not in ROUTERS:
            raise ValueError(f"router {self.router!r}: allowed are {', '.join(ROUTERS)}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {self.dtype!r}: allowed are {', '.join(DTYPE_BYTES)}")
        for name in ("groups", "length", "dim", "hidden", "experts", "top_k"):
            self._counts(name)
        if self.threads is not None:
            self._counts("threads")
        if self.top_k > self.experts:
            raise ValueError(f"top_k is {self.top_k}, more than the {self.experts} experts")
        if self.top_k != TOP_K.get(self.router, self.top_k):
            raise ValueError(f"top_k is {self.top_k}, {self.router} routing has {TOP_K[self.router]}")
        if self.capacity_factor is not None and not 0 < self.capacity_factor < math.inf:
            raise ValueError(f"capacity_factor is {self.capacity_factor}, must be positive and finite, or None")
        if not 0 <= self.skew <= MAX_SKEW:
            raise ValueError(f"skew is {self.skew}, must be from 0 to {MAX_SKEW:g}")
        if self.skew and self.experts > self.dim:
            raise ValueError(f"skew is {self.skew}: tokens of {self.dim} numbers cannot lean to {self.experts} experts")
        if self.router == "topk" and self.capacity_factor is not None:
            raise ValueError(f"capacity_factor is {self.capacity_factor}: topk routing is dropless, leave it None")
        if self.router == "expert_choice" and self.capacity_factor is None:
            raise ValueError(
                "capacity_factor is None: expert choice needs one, it says how many tokens an expert takes"
            )

    def _counts(self, name: str) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}, must be a whole number of at least 1")

    @property
    def tokens(self) -> int:
        return self.groups * self.length

    @property
    def capacity(self) -> int:
        """Tokens of a group that an expert takes at most: factor * K * T / E, rounded up; T where dropless."""
        if self.capacity_factor is None:
            return self.length
        share = self.capacity_factor * self.top_k * self.length / self.experts
        return math.ceil(min(self.length, share * (1 - 1e-12)))  # 1.1 * 50 / 5 is a little more than 11 in binary

    @property
    def assignments(self) -> int | None:
        """Pairs of a token and an expert that answers it, or None where that depends on the tokens."""
        if self.router == "expert_choice":
            return self.groups * self.experts * self.capacity
        if self.router == "gshard" or self.capacity < self.length:
            return None
        return self.tokens * self.top_k

    @property
    def slug(self) -> str:
        parts = [f"b{self.groups}-t{self.length}-d{self.dim}-h{self.hidden}-e{self.experts}-k{self.top_k}", self.router]
        parts += [f"cf{self.capacity_factor:g}"] if self.capacity_factor is not None else []
        parts += [f"skew{self.skew:g}"] if self.skew else []
        parts += [self.dtype, "fwdbwd" if self.backward else "fwd"]
        parts += [f"t{self.threads}"] if self.threads else []
        return "-".join(parts)

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        axes: dict[str, str | int | float | bool] = {
            "tokens": self.tokens,
            "groups": self.groups,
            "width": self.dim,
            "hidden": self.hidden,
            "experts": self.experts,
            "top_k": self.top_k,
            "router": self.router,
            "capacity_factor": "dropless" if self.capacity_factor is None else self.capacity_factor,
            "skew": self.skew,
            "dtype": self.dtype,
            "pass": "fwdbwd" if self.backward else "fwd",
        }
        return axes | {"threads": self.threads} if self.threads else axes

    def flops(self) -> float | None:
        """Of the matrix products: experts for each assignment, the router for each token; thrice with a backward."""
        if self.assignments is None:
            return None
        forward = 6.0 * self.dim * self.hidden * self.assignments + 2.0 * self.dim * self.experts * self.tokens
        return 3 * forward if self.backward else forward

    def bytes_moved(self) -> float:
        """x and weights read, y written; with a backward dy read, dx and the weights' gradients written, too.

        Weights are those of the experts that must have been asked: all where eight tokens come to each of balanced
        ones, else ``top_k``. A gradient is written for every expert.
        """
        expert = 3 * self.dim * self.hidden
        all_asked = not self.skew and self.tokens * self.top_k >= 8 * self.experts
        weights = expert * (self.experts if all_asked or self.router == "expert_choice" else self.top_k)
        elements = 2 * self.tokens * self.dim + weights
        if self.backward:
            elements += 2 * self.tokens * self.dim + weights + expert * self.experts
        return float(elements * DTYPE_BYTES[self.dtype])


def _make_inputs(case: MoeCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.kernels.moe_ffn import _workload

    return _workload.make_inputs(case, seed, device)


def _add_backward(case: MoeCase, call: Call) -> Call:
    from archbench.kernels.moe_ffn import _workload

    return _workload.workload(case, call)


def _check(case: MoeCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.kernels.moe_ffn import _gate

    return _gate.gate(case, inputs, outputs)


def _rolls(case: MoeCase) -> tuple[int | None, ...]:
    """Tokens with all that is theirs; never the router, without which they would ask other experts than were drawn."""
    x, router, w_in, w_out, uniform, dy = 1, None, 1, 1, 1, 1
    return (x, router, w_in, w_out, uniform, *((dy,) if case.backward else ()))


def _skip(case: MoeCase, place: Place) -> str | None:
    most = 6.0 * case.dim * case.hidden * case.tokens * case.top_k * (3 if case.backward else 1)
    if place.device == "cpu" and most > CPU_FLOPS:
        return f"{most / 1e9:.0f} billion operations are a GPU's work; CPU cases have at most {CPU_FLOPS / 1e9:.0f}"
    if place.device == "cuda" and case.threads:
        return "a thread count means nothing on a GPU"
    # Weights, gradients and answers of contender and baseline, and the check in float64.
    weights = 3.0 * case.experts * case.dim * case.hidden
    hidden = 3.0 * case.tokens * case.top_k * case.hidden
    passes = 2 if case.backward else 1
    needed = passes * (weights + hidden) * (2 * DTYPE_BYTES[case.dtype] + 8)
    if needed > place.memory_bytes:
        return f"needs {needed / 2**30:.1f} GiB for weights and the check; there are {place.memory_bytes / 2**30:.1f}"
    return None


def _test_cases() -> tuple[MoeCase, ...]:
    case = MoeCase
    return (
        case(1, 1, 1, 1, 1, top_k=1, backward=True),
        case(2, 17, 24, 20, 4, backward=True),
        case(1, 3, 16, 8, 7, top_k=3),  # more experts than tokens
        case(1, 70, 33, 31, 5, dtype="fp64", backward=True),
        case(3, 40, 32, 48, 8, dtype="bf16", backward=True),
        case(1, 64, 16, 24, 6, skew=8.0, backward=True),  # nearly all tokens to two experts, none to the others
        case(2, 29, 20, 12, 4, router="gshard", capacity_factor=1.0, skew=1.0, backward=True),
        case(1, 33, 16, 16, 6, router="gshard", backward=True),
        case(2, 31, 16, 12, 4, top_k=1, router="switch", capacity_factor=1.25, skew=1.0, backward=True),
        case(1, 24, 16, 12, 4, top_k=1, router="switch", dtype="bf16"),
        case(2, 21, 16, 12, 4, router="expert_choice", capacity_factor=0.5, backward=True),
    )


def _cpu_cases() -> tuple[MoeCase, ...]:
    """Mixtral's proportions (hidden = 3.5 width) at three widths, then one thing after the other is changed."""
    case = MoeCase
    return (
        case(8, 256, 256, 896, 8),
        case(8, 256, 512, 1792, 8),
        case(4, 256, 1024, 3584, 8),
        case(8, 256, 256, 896, 8, backward=True),
        case(8, 256, 512, 1792, 8, backward=True),
        *(case(8, 256, 256, 896, experts) for experts in (4, 16, 64)),
        case(8, 256, 256, 896, 8, top_k=1),
        case(8, 256, 256, 896, 8, skew=1.0),
        *(case(groups, 256, 256, 896, 8) for groups in (1, 32)),
        *(case(8, 256, 256, 896, 8, router="gshard", capacity_factor=factor) for factor in (1.0, 1.25, 2.0)),
        *(case(8, 256, 256, 896, 8, top_k=1, router="switch", capacity_factor=factor) for factor in (1.0, 1.25, 2.0)),
        case(8, 256, 256, 896, 8, top_k=1, router="switch", capacity_factor=1.25, skew=1.0, backward=True),
        case(8, 256, 256, 896, 8, router="expert_choice", capacity_factor=1.0),
        case(8, 256, 512, 1792, 8, dtype="bf16"),
    )


def _gpu_cases() -> tuple[MoeCase, ...]:
    """Mixtral 8x7B's layer, and one of 64 small experts, at 8 k and 32 k tokens."""
    case = MoeCase
    both = (False, True)
    return (
        *(case(8, 1024, 4096, 14336, 8, dtype="bf16", backward=back) for back in both),
        *(case(32, 1024, 2048, 1408, 64, dtype="bf16", backward=back) for back in both),
        case(32, 1024, 2048, 1408, 64, dtype="bf16", skew=1.0),
        case(32, 1024, 1024, 3584, 16, top_k=1, router="switch", capacity_factor=1.25, dtype="bf16", backward=True),
        case(32, 1024, 1024, 3584, 16, router="gshard", capacity_factor=2.0, dtype="bf16"),
    )


NOTES = """\
A call is the whole layer: router, the way to the experts, the experts, and the weighted sum of their answers. All
contenders get the same weights, and the tokens are drawn so that no two experts are within rounding of each other where
one is chosen and the other is not: everybody routes the same, and answers can be compared one by one, gradients too.

`dense` is one layer with the same number of operations for a token, without a router; `dense_equal_params` has the
parameters of all experts and uses them all. Both compute something else, so they are timed and not ranked. Both call
`torch.mm`, on a CPU the vendor's BLAS, as `expert_loop` does: what that one costs beside `dense` is what routing costs.
`sorted_grouped` multiplies by C++ of its own (float32 forwards) or by oneDNN, which are quicker on some processors, and
may be below `dense` for that alone.

A capacity makes tensors rectangular and drops what does not fit. `dropped` is part of the answer and is checked: nobody
drops in silence. In dropless cases a contender that needs rectangles (`einsum_dispatch`, `st_moe`,
`mixture_of_experts`) gives every expert room for all tokens of a group, which is what its users have to do.

The limit counts the matrix products of the assignments that are kept. Where drops or chance decide their number it is
that of the bytes alone, which is far below."""

TRACK: Track[MoeCase] = Track(
    name="moe_ffn",
    question="Which implementation of a mixture of experts is fastest, and what does routing cost beside dense?",
    version="1",
    baseline="dense",
    test_cases=_test_cases(),
    bench_cases=_cpu_cases() + _gpu_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_add_backward,
    rolls=_rolls,
    skip=_skip,
    preload=("torch", "triton"),
    notes=NOTES,
    derivation="moe",
)
