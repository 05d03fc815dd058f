"""How the loss behaves along a step: its range, and how far the gradient turns.

At weights w with gradient g of a batch the loss is taken again at w - t g for several t, in training mode, as an
optimizer would meet it. A landscape is smooth where loss and gradient change little on the way. Weights and buffers
(running statistics) are put back, so that a training that is looked at goes on as if it had not been.

Source: Santurkar et al. 2018, arXiv:1805.11604
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from archbench.models._train_step import total_norm

Loss = Callable[[nn.Module], Tensor]


@torch.enable_grad()
def along_the_gradient(model: nn.Module, loss: Loss, lengths: Sequence[float]) -> tuple[float, float]:
    """``(loss_range, gradient_change)`` over steps of these lengths in units of the gradient.

    The first is (largest loss - least loss) / |loss at w|, the second the largest |g(w - t g) - g(w)| / |g(w)|. Either
    is infinite or NaN where a loss or gradient on the way is, or where that at w is zero.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    training = model.training
    model.train()
    try:
        value, gradient = _value_and_gradient(loss, model, weights)
        values, turns = [value], []
        size = total_norm(gradient)
        for length in lengths:
            with torch.no_grad():
                model.load_state_dict(kept)
                torch._foreach_add_(weights, gradient, alpha=-length)
            value, there = _value_and_gradient(loss, model, weights)
            values.append(value)
            turns.append(total_norm(torch._foreach_sub(there, gradient)) / size)
    finally:
        model.load_state_dict(kept)
        model.train(training)
    # Tensors, not floats: their largest value is NaN where one is, and nothing is raised for a loss of zero.
    losses = torch.stack(values)
    return float((losses.max() - losses.min()) / losses[0].abs()), float(torch.stack(turns).max())


def _value_and_gradient(loss: Loss, model: nn.Module, weights: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    value = loss(model)
    return value.detach(), list(torch.autograd.grad(value, weights))
