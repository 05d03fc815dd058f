"""Inputs, workload, float64 reference and gate of the attention track.

The reference takes the definition literally, for a block of query rows and one KV head at a time, in float64, and lets
autograd derive the gradients: slow, small in memory, and without a derivation in common with the contenders.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from archbench.checks import Tolerance, Wrong, compare, flatten, like, to_float64
from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Device

TORCH_DTYPE = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = ("out", "dq", "dk", "dv")

# Scores the reference holds at once: 32 MiB of float64 on a CPU, a GPU needs more work per launch (512 MiB).
CHUNK_SCORES = {"cpu": 1 << 22, "cuda": 1 << 26}


def make_inputs(case: AttentionCase, seed: int, device: Device) -> tuple[Tensor, ...]:
    """Standard normal q_BHTD, k_BGTD, v_BGTD, and dout_BHTD where the case has a backward.

    Drawn on the CPU, so that the same seed asks the same question on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = TORCH_DTYPE[case.dtype]
    drawn = torch.float64 if dtype is torch.float64 else torch.float32

    def normal(heads: int) -> Tensor:
        shape = (case.batch, heads, case.length, case.head_dim)
        return torch.randn(shape, generator=generator, dtype=drawn).to(device=device, dtype=dtype)

    inputs = (normal(case.heads), normal(case.groups), normal(case.groups))
    return (*inputs, normal(case.heads)) if case.backward else inputs


def workload(case: AttentionCase, call: Call) -> Call:
    """``(q, k, v) -> out`` without gradients, or ``(q, k, v, dout) -> (out, dq, dk, dv)``."""

    def forward(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Any:
        with torch.no_grad():
            return call(q_BHTD, k_BGTD, v_BGTD)

    def forward_backward(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, dout_BHTD: Tensor) -> Any:
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (q_BHTD, k_BGTD, v_BGTD)]
            out = call(*leaves)
            return (out.detach(), *torch.autograd.grad(out, leaves, dout_BHTD))

    return forward_backward if case.backward else forward


def reference(case: AttentionCase, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Float64 ``(out,)`` or ``(out, dq, dk, dv)`` on the device of the inputs."""
    wide = [tensor.detach().double() for tensor in inputs]
    results = [torch.empty_like(tensor) for tensor in (wide[0], *wide[: 3 * case.backward])]
    shared = case.heads // case.groups
    for b in range(case.batch):
        for g in range(case.groups):
            heads = slice(g * shared, (g + 1) * shared)
            q_RTD, k_TD, v_TD = wide[0][b, heads], wide[1][b, g], wide[2][b, g]
            if case.backward:
                answer = _one_group_with_gradients(case, q_RTD, k_TD, v_TD, wide[3][b, heads])
                for result, place, value in zip(results, (heads, heads, g, g), answer, strict=True):
                    result[b, place] = value
            else:
                for rows, out_RCD in _row_chunks(case, q_RTD, k_TD, v_TD):
                    results[0][b, heads, rows] = out_RCD
    return tuple(results)


def _row_chunks(case: AttentionCase, q_RTD: Tensor, k_TD: Tensor, v_TD: Tensor) -> Iterator[tuple[slice, Tensor]]:
    length = case.length
    step = max(1, CHUNK_SCORES[q_RTD.device.type] // (q_RTD.shape[0] * length))
    index = torch.arange(length, device=q_RTD.device)
    for start in range(0, length, step):
        rows = slice(start, min(start + step, length))
        seen = rows.stop if case.causal else length
        scores_RCT = torch.einsum("rcd,td->rct", q_RTD[:, rows] / math.sqrt(case.head_dim), k_TD[:seen])
        if case.causal:
            scores_RCT = scores_RCT.masked_fill(index[None, :seen] > index[rows, None], -math.inf)
        yield rows, torch.einsum("rct,td->rcd", scores_RCT.softmax(dim=-1), v_TD[:seen])


def _one_group_with_gradients(
    case: AttentionCase, q_RTD: Tensor, k_TD: Tensor, v_TD: Tensor, dout_RTD: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out_RTD = torch.empty_like(q_RTD)
    leaves = [tensor.clone().requires_grad_() for tensor in (q_RTD, k_TD, v_TD)]
    with torch.enable_grad():
        for rows, out_RCD in _row_chunks(case, *leaves):
            out_RCD.backward(dout_RTD[:, rows])
            out_RTD[:, rows] = out_RCD.detach()
    dq_RTD, dk_TD, dv_TD = (leaf.grad for leaf in leaves)
    return out_RTD, dq_RTD, dk_TD, dv_TD


# Unit of error of a dtype: the spacing of its numbers at 1.
EPS = {"fp64": 2.0**-52, "fp32": 2.0**-23, "bf16": 2.0**-7, "fp16": 2.0**-10}

# Bounds in units of EPS at magnitude 1: (relative, absolute). Each absolute bound is about twice the largest deviation
# seen of the plain implementation (a million elements), which rounds most; fused kernels stay below a fifth of it.
# - bf16, fp16: scores, weights and output are rounded once each. A score of 4 to 8 rounded to half precision is off by
#   up to 2 eps, its weight by as much relative to itself, and short rows hang on one weight.
# - fp32: sums over D for each score and over T for each output, in an order that differs between implementations.
#   TF32 products (2**-10) do not pass.
# - fp64: 1e-10; every correct implementation is far inside, a forgotten cast to float32 is far outside.
BOUND = {"fp64": (2.0**19, 2.0**19), "fp32": (32.0, 128.0), "bf16": (2.0, 12.0), "fp16": (2.0, 12.0)}


def tolerance(case: AttentionCase, name: str, terms: int) -> Tolerance:
    """The bound of ``out``, ``dq``, ``dk`` or ``dv`` for rows that average over at least ``terms`` keys or queries.

    For standard normal inputs a softmax row over n keys has ``sum(p**2)`` near e/n, so outputs and gradients have a
    standard deviation near sqrt(e/n) (1 at most); dk and dv add up the query heads of their KV head.
    """
    relative, absolute = BOUND[case.dtype]
    scale = min(1.0, math.sqrt(math.e / terms))
    if name in ("dk", "dv"):
        scale *= math.sqrt(case.heads / case.groups)
    if name != "out":
        scale *= 2  # a gradient rounds twice as often: weights and their gradients, both recomputed or stored
    eps = EPS[case.dtype]
    reason = f"{case.dtype}, {absolute:g} eps of values near {scale:.2g}"
    return Tolerance(rtol=relative * eps, atol=absolute * eps * scale, reason=reason)


def gate(case: AttentionCase, inputs: tuple[Tensor, ...], outputs: Any) -> float:
    """Largest relative error over out and the gradients. Raises Wrong.

    Rows are compared in bands whose length doubles, each with the bound of its first row: under a causal mask row i
    averages i + 1 values, so late rows are small and a bound fit for row 0 would not see them at all.
    """
    want = {name: to_float64(tensor) for name, tensor in zip(NAMES, reference(case, *inputs), strict=False)}
    given = list(flatten(outputs).values())
    if len(given) != len(want):
        raise Wrong(f"returned {len(given)} tensors, expected {len(want)}: {', '.join(want)}")
    errors = []
    for (name, expected), value in zip(want.items(), given, strict=True):
        got = to_float64(value, name)
        like(value, inputs[0], name)
        if got.shape != expected.shape:
            raise Wrong(f"{name} has shape {got.shape}, expected {expected.shape}")
        squares, total = 0.0, 0.0
        for start, stop in _bands(case):
            terms = start + 1 if case.causal else case.length
            part = expected[:, :, start:stop]
            label = f"{name} (rows {start} to {stop - 1})"
            error = compare(got[:, :, start:stop], part, tolerance(case, name, terms), label)
            norm = float((part * part).sum())
            squares, total = squares + (error * error * norm if norm else error * error), total + norm
        errors.append(math.sqrt(squares / total) if total else math.sqrt(squares))
    return max(errors)


def _bands(case: AttentionCase) -> list[tuple[int, int]]:
    if not case.causal:
        return [(0, case.length)]
    edges = [0, *(1 << n for n in range(case.length.bit_length()) if 1 << n < case.length), case.length]
    return list(pairwise(edges))
