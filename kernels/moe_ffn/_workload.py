"""Inputs on which everybody routes the same, and the backward pass.

A router decides by comparing numbers, and two right implementations differ in the last bits. So tokens are drawn again
until no decision is closer than ``MARGIN``: then routing is the same for all who compute logits in float32, and their
answers can be compared one by one.

Letters: B groups, T tokens of a group, D width, H hidden units, F = 2 H, E experts, K experts of a token, C capacity.

Source: the module's own; archbench.kernels.moe_ffn says what a call takes and returns
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from archbench.kernels.moe_ffn import MoeCase
from archbench.track import Call, Device

TORCH_DTYPE = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}
MARGIN = 1e-4  # between numbers of which one wins: float32 logits are off by some 1e-6
ROUNDS = 1000  # a round draws only the tokens again that are too close: a handful of rounds is the rule


def make_inputs(case: MoeCase, seed: int, device: Device) -> tuple[Tensor, ...]:
    """x, router, w_in, w_out, uniform; with a backward dy."""
    generator = torch.Generator().manual_seed(seed)
    dtype = TORCH_DTYPE[case.dtype]

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    router_ED = normal(case.experts, case.dim, scale=case.dim**-0.5)
    w_in_EFD = normal(case.experts, 2 * case.hidden, case.dim, scale=case.dim**-0.5)
    w_out_EHD = normal(case.experts, case.hidden, case.dim, scale=case.hidden**-0.5)
    shift_D = _shift(case, router_ED)
    x_BTD = (torch.randn(case.groups, case.length, case.dim, generator=generator) + shift_D).to(dtype)
    uniform_BT = torch.rand(case.groups, case.length, generator=generator)
    for _ in range(ROUNDS):
        close_BT = too_close(case, x_BTD, router_ED, uniform_BT)
        count = int(close_BT.sum())
        if not count:
            break
        x_BTD[close_BT] = (torch.randn(count, case.dim, generator=generator) + shift_D).to(dtype)
        uniform_BT[close_BT] = torch.rand(count, generator=generator)
    else:
        raise RuntimeError(f"{case.slug}: decisions of the router stay within {MARGIN}")
    given = [x_BTD, router_ED, w_in_EFD, w_out_EHD, uniform_BT]
    given += [normal(case.groups, case.length, case.dim)] if case.backward else []
    return tuple(tensor.to(device) for tensor in given)


def _shift(case: MoeCase, router_ED: Tensor) -> Tensor:
    """What to add to every token so that expert e's logit moves by -skew ln(e + 1)."""
    wanted_E = -case.skew * torch.arange(1, case.experts + 1).log()
    shift: Tensor = torch.linalg.lstsq(router_ED.double(), wanted_E.double().unsqueeze(-1), driver="gelsd").solution
    return shift.squeeze(-1).float()


def too_close(case: MoeCase, x_BTD: Tensor, router_ED: Tensor, uniform_BT: Tensor) -> Tensor:
    """(B, T), true for a token on which rounding could decide."""
    logits_BTE = x_BTD.double() @ router_ED.double().T
    if case.router == "expert_choice":
        return _close_to_the_border(case, logits_BTE.softmax(-1))
    best_BTL = logits_BTE.topk(min(case.top_k + 1, case.experts), dim=-1).values
    near_BTK = best_BTL.diff(dim=-1) > -MARGIN
    if case.router == "topk":  # who of the chosen comes first decides nothing
        near_BTK = near_BTK[..., case.top_k - 1 :]
    close_BT = near_BTK.any(-1)
    if case.router == "gshard":
        share_BT = best_BTL[..., :2].softmax(-1)[..., 1]
        close_BT |= (2 * share_BT - uniform_BT).abs() < MARGIN
    return close_BT


def _close_to_the_border(case: MoeCase, probabilities_BTE: Tensor) -> Tensor:
    """Tokens that an expert takes last, where the next one is as likely within the margin."""
    close_BT = torch.zeros(probabilities_BTE.shape[:2], dtype=torch.bool)
    if case.capacity == case.length:
        return close_BT
    best = probabilities_BTE.transpose(1, 2).topk(case.capacity + 1, dim=-1)  # (B, E, C + 1)
    near_BE = best.values[..., -2] - best.values[..., -1] < MARGIN * best.values[..., -2]
    group, _ = near_BE.nonzero(as_tuple=True)
    close_BT[group, best.indices[..., -2][near_BE]] = True
    return close_BT


def names(case: MoeCase) -> tuple[str, ...]:
    """What the workload returns, in its order."""
    answers = ("y",) if case.router == "topk" else ("y", "loss", "dropped")
    return answers + (("dx", "drouter", "dw_in", "dw_out") if case.backward else ())


def workload(case: MoeCase, call: Call) -> Call:
    """``call`` without gradients, or followed by those of x and all weights for dy and a loss that counts N sqrt(D).

    A mean over N tokens moves a token by 1 / N of what dy does, and would be lost in the rounding of that. With this
    factor both move the router alike, and a gradient that is forgotten is seen at any size.

    A call with a method ``learned`` says itself which parts of the first four inputs it uses, and is then asked through
    ``apply`` with those alone: a slice of the weights inside the call would get the gradient of a whole.
    """
    learned: Callable[..., tuple[Tensor, ...]] | None = getattr(call, "learned", None)

    def forward(*inputs: Tensor) -> Any:
        with torch.no_grad():
            return call(*inputs)

    def forward_backward(*inputs: Tensor) -> Any:
        *given, uniform_BT, dy_BTD = inputs
        with torch.enable_grad():
            leaves = [tensor.detach().requires_grad_() for tensor in (learned(*given) if learned else given)]
            said = call.apply(*leaves) if learned else call(*leaves, uniform_BT)  # type: ignore[attr-defined]
            y, loss, *counts = said if isinstance(said, tuple) else (said, None)
            asked = [(y, dy_BTD)]
            if loss is not None and loss.requires_grad:
                asked.append((loss, torch.full_like(loss, case.tokens * case.dim**0.5)))
            outputs, directions = zip(*asked, strict=True)
            gradients = torch.autograd.grad(outputs, leaves, directions, allow_unused=True)
        kept = [torch.zeros_like(leaf) if got is None else got for leaf, got in zip(leaves, gradients, strict=True)]
        return (y.detach(), *(() if loss is None else (loss.detach(),)), *counts, *kept)

    return forward_backward if case.backward else forward
