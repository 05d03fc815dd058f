"""Experts applied to rows that are sorted by expert, with hand-derived gradients: no capacities, nobody is dropped.

``grouped_ffn`` takes the rows of each expert out of x, multiplies them with its matrices, and adds what the experts say
to each token, weighted, in one pass: a token's assignments are a bag of rows, and their weighted sum is what an
embedding bag computes. With h = x w_in^T, q = act(h), o = q w_out and y = sum of w o over a token's assignments, for
rows that belong to one expert and e = w dy:

    dw = rowwise dot of dy and o          dq = e w_out^T          dw_out = q^T e
    dh = act'(h) dq                       dx = dh w_in, summed over a token's assignments          dw_in = dh^T x

For a backward h and o are kept, (A, F) and (A, D); q is computed again, which costs a pass over h and saves (A, H).

On a GPU with ``torch._grouped_mm`` all experts are one product, and how many tokens each has is never looked at by the
host. On a CPU a loop over the experts is faster: what one expert needs stays in the caches. There float32 without a
gradient is multiplied by C++ of our own (``_native``) where there is a compiler. All else is oneDNN's, and an expert's
rows are filled up to a multiple of eight, because oneDNN translates a kernel for every number of rows it has not met:
the rows that follow are multiplied too and cut off, and their gradient is zero.

Letters: N tokens, D width, H hidden units, F = 2 H for gated layers, else H, E experts, A assignments, M of one expert.

Source: Gale et al. 2022, arXiv:2211.15841 (MegaBlocks: products of groups instead of padding); the derivation above
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from archbench.kernels.moe_ffn import _grouped_mm, _native
from archbench.kernels.moe_ffn._products import Activation, activated, by_onednn, hidden_of, product, slope
from archbench.kernels.moe_ffn._routing import Routing, counted

STEP = 8  # rows, where oneDNN multiplies: a size that is new to it costs half a product of 512 rows


class Rows(NamedTuple):
    """An expert's rows of the list, and where they end when they are filled up."""

    expert: int
    start: int
    stop: int
    filled: int

    def put(self, values_MD: Tensor, values_AD: Tensor) -> None:
        """Writes its rows into the list, without those that fill up."""
        values_AD[self.start : self.stop] = values_MD[: self.stop - self.start]

    def with_zeros(self, values_AD: Tensor) -> Tensor:
        """Its rows of the list, filled up with zeros."""
        return F.pad(values_AD[self.start : self.stop], (0, 0, 0, self.filled - self.stop))


class Plan(NamedTuple):
    """Who goes where, in the form the products and the sums want it."""

    activation: Activation
    token_A: Tensor
    index_A: Tensor  # assignments in the order of the tokens
    first_N: Tensor  # where a token's assignments begin in that order
    counts: list[int] | None  # of the experts; None where one product does them all
    ends_E: Tensor | None  # int32: where an expert's rows end; None where experts are asked one by one
    step: int  # rows of an expert are filled up to a multiple of it

    def experts(self) -> Iterator[Rows]:
        """Experts that are asked."""
        stop = 0
        for number, count in enumerate(self.counts or ()):
            start, stop = stop, stop + count
            if count:
                yield Rows(number, start, stop, start + -(-count // self.step) * self.step)

    def gathered(self, x_ND: Tensor) -> Tensor:
        """(A, D): the tokens in the order of the list, and rows behind it to fill up the last ones."""
        if not len(self.token_A):
            return x_ND[:0]
        return x_ND.index_select(0, F.pad(self.token_A, (0, self.step - 1)))

    def summed(self, said_AD: Tensor, weight_A: Tensor | None = None) -> Tensor:
        """(N, D): for each token the sum of its rows, weighted."""
        weight_A = None if weight_A is None else weight_A.to(said_AD.dtype)[self.index_A]
        y_ND: Tensor = torch.embedding_bag(said_AD, self.index_A, self.first_N, False, 0, False, weight_A)[0]
        return y_ND


def grouped_ffn(
    x_ND: Tensor, routing: Routing, w_in_EFD: Tensor, w_out_EHD: Tensor, activation: Activation = "swiglu"
) -> Tensor:
    """(N, D): for each token the weighted sum of what its experts say. Differentiable once, in all four.

    ``swiglu``: w_in holds gate and value one above the other, F = 2 H. ``relu``: F = H. Tokens without an assignment
    get zero. Raises ValueError where the shapes do not fit.
    """
    wanted = (2 if activation == "swiglu" else 1) * w_out_EHD.shape[1]
    if w_in_EFD.shape[1] != wanted:
        raise ValueError(f"w_in has {w_in_EFD.shape[1]} rows an expert, {activation} wants {wanted}")
    plan = _plan(activation, x_ND, routing, w_in_EFD, w_out_EHD)
    learned = (x_ND, routing.weight_A, w_in_EFD, w_out_EHD)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned):
        y_ND: Tensor = _GroupedFfn.apply(plan, *learned)
        return y_ND
    said_AD = _answers(plan, x_ND, w_in_EFD, w_out_EHD)
    return plan.summed(said_AD, routing.weight_A)


def _plan(activation: Activation, x_ND: Tensor, routing: Routing, w_in_EFD: Tensor, w_out_EHD: Tensor) -> Plan:
    token_A, slots_NK = routing.token_A, routing.slots_NK
    if slots_NK is not None:
        index_A = slots_NK.flatten()
        first_N = torch.arange(0, len(index_A), slots_NK.shape[1], device=index_A.device)
    else:
        index_A = token_A.argsort(stable=True)
        counts_N = counted(token_A, len(x_ND))
        first_N = counts_N.cumsum(0) - counts_N
    together = _grouped_mm.fits(x_ND, w_in_EFD, w_out_EHD)
    return Plan(
        activation,
        token_A,
        index_A,
        first_N,
        counts=None if together else routing.counts_E.tolist(),
        ends_E=routing.counts_E.cumsum(0).to(torch.int32) if together else None,
        step=1 if together or not by_onednn(x_ND) else STEP,
    )


def _answers(plan: Plan, x_ND: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor) -> Tensor:
    """(A, D): what the experts say, with nothing kept."""
    if plan.counts is not None and _native.fits(x_ND, w_in_EFD, w_out_EHD):
        return _native.forward(plan.activation, x_ND, plan.token_A, plan.counts, w_in_EFD, w_out_EHD)
    x_AD = plan.gathered(x_ND)
    if plan.ends_E is not None:
        return _grouped_mm.forward(plan.activation, x_AD, w_in_EFD, w_out_EHD, plan.ends_E)[1]
    said_AD = x_ND.new_empty(len(plan.token_A), x_ND.shape[1])
    for rows in plan.experts():
        hidden_MH = hidden_of(plan.activation, x_AD[rows.start : rows.filled], w_in_EFD[rows.expert])
        rows.put(product(hidden_MH, w_out_EHD[rows.expert].T), said_AD)
    return said_AD


class _GroupedFfn(torch.autograd.Function):
    """``apply(plan, x, weight, w_in, w_out) -> y``."""

    @staticmethod
    def forward(ctx: Any, plan: Plan, x_ND: Tensor, weight_A: Tensor, w_in_EFD: Tensor, w_out_EHD: Tensor) -> Tensor:
        ctx.plan, x_AD = plan, plan.gathered(x_ND)
        if plan.ends_E is not None:
            h_AF, said_AD = _grouped_mm.forward(plan.activation, x_AD, w_in_EFD, w_out_EHD, plan.ends_E)
            kept = [h_AF]
        else:
            kept, said_AD = [], x_ND.new_empty(len(plan.token_A), x_ND.shape[1])
            for rows in plan.experts():
                kept.append(product(x_AD[rows.start : rows.filled], w_in_EFD[rows.expert]))
                hidden_MH, _ = activated(plan.activation, kept[-1])
                rows.put(product(hidden_MH, w_out_EHD[rows.expert].T), said_AD)
        ctx.save_for_backward(x_ND, weight_A, w_in_EFD, w_out_EHD, said_AD, *kept)
        return plan.summed(said_AD, weight_A)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: Tensor) -> Any:
        plan: Plan = ctx.plan
        x_ND, weight_A, w_in_EFD, w_out_EHD, said_AD, *kept = ctx.saved_tensors
        dy_AD = dy_ND.index_select(0, plan.token_A)
        dweight_A = (dy_AD * said_AD).sum(-1, dtype=weight_A.dtype)
        dy_AD *= weight_A.unsqueeze(-1)
        x_AD = plan.gathered(x_ND)
        if plan.ends_E is not None:
            dx_AD, dw_in_EFD, dw_out_EHD = _grouped_mm.backward(
                plan.activation, dy_AD, x_AD, kept[0], w_in_EFD, w_out_EHD, plan.ends_E
            )
            return None, plan.summed(dx_AD), dweight_A, dw_in_EFD, dw_out_EHD
        dw_in_EFD, dw_out_EHD = torch.empty_like(w_in_EFD), torch.empty_like(w_out_EHD)
        for number, count in enumerate(plan.counts or ()):
            if not count:
                dw_in_EFD[number], dw_out_EHD[number] = 0, 0
        dx_AD = torch.empty_like(dy_AD)
        for h_MF, rows in zip(kept, plan.experts(), strict=True):
            hidden_MH, open_MH = activated(plan.activation, h_MF)
            dsaid_MD = rows.with_zeros(dy_AD)
            torch.mm(hidden_MH.T, dsaid_MD, out=dw_out_EHD[rows.expert])
            dh_MF = slope(plan.activation, h_MF, open_MH, product(dsaid_MD, w_out_EHD[rows.expert]))
            torch.mm(dh_MF.T, x_AD[rows.start : rows.filled], out=dw_in_EFD[rows.expert])
            rows.put(product(dh_MF, w_in_EFD[rows.expert].T), dx_AD)
        return None, plan.summed(dx_AD), dweight_A, dw_in_EFD, dw_out_EHD
