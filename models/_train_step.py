"""One update of a model, as a recipe wants it: forward, loss, backward, clipping, optimizer, moving average.

The same step is called by the loop and timed by the tracks. Nothing in it waits for the device: what is watched stays
a tensor until somebody reads it. Norms are taken only when asked for, over all tensors in one call.

Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization (arXiv:1711.05101); Pascanu et al. 2013, On the
difficulty of training recurrent neural networks (arXiv:1211.5063); the moving average's warm-up is TensorFlow's
``ExponentialMovingAverage(num_updates=...)``
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from archbench.models._train_recipe import Recipe

Loss = Callable[..., Tensor]

# Layers whose weights scale instead of mix, whatever their rank: LayerNorm's may have three dimensions.
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: matrices and filters decay, biases and the weights of norms do not. Only trainable ones."""
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters(recurse=False)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    decays = [p for p in trainable if p.ndim >= 2 and id(p) not in norms]
    chosen = {id(p) for p in decays}
    others = [p for p in trainable if id(p) not in chosen]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm over all tensors together, a scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


class Step:
    """``step(*batch) -> loss`` updates ``model`` once; the loss, detached, is that before the update.

    Raises ValueError for a model without trainable parameters, precision the device lacks, a loss that is no scalar
    that depends on the parameters, and a first loss that is not finite.
    """

    def __init__(self, model: nn.Module, loss: Loss, recipe: Recipe, device: str = "cpu") -> None:
        self.device = torch.device(device)
        if recipe.precision == "fp16" and self.device.type != "cuda":
            raise ValueError(f"fp16 with a scaled loss trains on CUDA only, not on {device}: take bf16 or fp32")
        self.model = model.to(self.device)
        if recipe.channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.trained = [p for p in model.parameters() if p.requires_grad]
        if not self.trained:
            raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient: nothing to train")
        self.loss = loss
        self.recipe = recipe
        self.optimizer = _optimizer(model, recipe, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.updates = 0
        self.initial_loss: float | None = None
        self.watched: tuple[Tensor, ...] = ()  # of the last watched update: gradient norm, update norm, weight norm
        self._state = [*model.parameters(), *model.buffers()]
        self.averages = [] if recipe.ema_decay is None else [tensor.detach().clone() for tensor in self._state]

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def __call__(self, *batch: Tensor, watch: bool = False) -> Tensor:
        value = self._forward(batch)
        if self.initial_loss is None:
            self.initial_loss = _checked(value)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(value).backward()
        grads = [p.grad for p in self.trained if p.grad is not None]
        clip = self.recipe.clip_norm
        if watch or clip is not None:
            self.scaler.unscale_(self.optimizer)
            norm = total_norm(grads)
            if clip is not None:
                torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1.0))
        if watch:
            before = [p.detach().clone() for p in self.trained]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        if watch:
            weights = total_norm(before)
            torch._foreach_sub_(before, [p.detach() for p in self.trained])
            self.watched = (norm, total_norm(before), weights)
        if self.averages:
            self._average()
        return value.detach()

    def placed(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The batch on the device; the copy overlaps with compute where the batch is in pinned memory."""
        moved = (tensor.to(self.device, non_blocking=True) for tensor in batch)
        if not self.recipe.channels_last:
            return tuple(moved)
        return tuple(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in moved)

    def _forward(self, batch: tuple[Tensor, ...]) -> Tensor:
        dtype = AUTOCAST.get(self.recipe.precision)
        with torch.enable_grad(), torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
            return self.loss(self.model, *self.placed(batch))

    @torch.no_grad()
    def _average(self) -> None:
        """``average += (1 - d) (weight - average)``; d grows to its value, or the start would weigh on short runs."""
        assert self.recipe.ema_decay is not None
        keep = min(self.recipe.ema_decay, (1 + self.updates) / (10 + self.updates))
        floats = [(a, s) for a, s in zip(self.averages, self._state, strict=True) if a.is_floating_point()]
        torch._foreach_lerp_([a for a, _ in floats], [s.detach() for _, s in floats], 1 - keep)
        for average, tensor in zip(self.averages, self._state, strict=True):
            if not average.is_floating_point():
                average.copy_(tensor)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the moving average, where the recipe has one."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange weights and moving average; pointers are swapped, nothing is copied."""
        for index, average in enumerate(self.averages):
            tensor = self._state[index]
            self.averages[index], tensor.data = tensor.data, average

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averages": self.averages,
            "updates": self.updates,
            "initial_loss": self.initial_loss,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        for average, saved in zip(self.averages, state["averages"], strict=True):
            average.copy_(saved)
        self.updates = state["updates"]
        self.initial_loss = state["initial_loss"]


def _optimizer(model: nn.Module, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    groups = decay_groups(model, recipe.weight_decay)
    # One kernel for all tensors; with a scaler it is also what keeps the step from waiting for the device.
    fused = device.type in ("cpu", "cuda")
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=fused)
    nesterov = recipe.nesterov and recipe.momentum > 0
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov, fused=fused)


def _checked(value: Tensor) -> float:
    if value.ndim or not value.requires_grad:
        shape = f"a tensor of shape {tuple(value.shape)}"
        raise ValueError(f"the loss is {shape}, expected a scalar that depends on the model's parameters")
    number = float(value.detach())
    if not math.isfinite(number):
        raise ValueError(
            f"the first loss is {number}, before any update: look at the data, the model and its initialisation"
        )
    return number
