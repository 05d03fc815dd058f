"""How a model is trained, as one frozen value, and the learning rate that follows from it.

Every number that changes a run's result is a field here, so that a checkpoint of another recipe can be refused by name.

Source: Goyal et al. 2017, Accurate, Large Minibatch SGD (arXiv:1706.02677) for the warm-up; Loshchilov & Hutter 2017,
SGDR (arXiv:1608.03983) for the cosine
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Raises ValueError for values that make no run."""

    steps: int  # updates of the whole run
    lr: float  # learning rate at its peak, after the warm-up
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9  # sgd
    nesterov: bool = True  # sgd with momentum
    betas: tuple[float, float] = (0.9, 0.999)  # adamw
    eps: float = 1e-8  # adamw
    weight_decay: float = 0.0  # of matrices and filters; biases and the weights of norms do not decay
    warmup_steps: int = 0  # updates over which the learning rate grows linearly from lr / warmup_steps
    lr_floor: float = 0.0  # where the cosine ends, as a share of lr; 1 keeps the learning rate constant
    clip_norm: float | None = None  # gradients are scaled down to this norm
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # autocast; fp16 with a scaled loss, on CUDA only
    channels_last: bool = False  # filters and images in NHWC order
    ema_decay: float | None = None  # moving average of the weights, which is then what is evaluated and kept
    eval_every: int | None = None  # updates between evaluations; None: only before the first and after the last
    target_error: float | None = None  # test_error at which time to target is taken
    log_every: int = 10  # updates between two readings of loss and norms
    divergence_factor: float | None = 10.0  # a loss above this many times the first one ends the run as diverged

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("log_every", 1), ("warmup_steps", 0), ("weight_decay", 0), ("momentum", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least {least}")
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, more than the {self.steps} steps of the run")
        if self.eval_every is not None and self.eval_every < 1:
            raise ValueError(f"eval_every is {self.eval_every}, must be at least 1 or None")
        for name in ("lr", "clip_norm", "divergence_factor"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, must be positive and finite")
        if not 0 <= self.lr_floor <= 1:
            raise ValueError(f"lr_floor is {self.lr_floor}, must be a share of lr: 0 to 1")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, must be at least 0 and below 1")
        for name, allowed in (("optimizer", ("sgd", "adamw")), ("precision", ("fp32", "bf16", "fp16"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, must be one of {', '.join(allowed)}")


def learning_rate(recipe: Recipe, step: int) -> float:
    """Learning rate of update ``step`` (from 0): linear warm-up, then half a cosine from lr to its floor.

    The floor is where update ``steps`` would be, one past the last: with a floor of 0 no update is wasted.
    """
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.lr * (recipe.lr_floor + (1 - recipe.lr_floor) * 0.5 * (1 + math.cos(math.pi * done)))
