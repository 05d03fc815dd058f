"""A small float network, images for it, and a short training: what the tests of the libraries' methods share."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.models._train_step import decay_groups
from archbench.models.vit_int4._layers import linears
from archbench.models.vit_int4._vit import Size, VisionTransformer


def small_images() -> Tensor:
    return torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def small_network() -> VisionTransformer:
    """With weights so large that logits differ from image to image."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionTransformer(Size(16, 8, 32, 2, 2, 10)).eval()
        with torch.no_grad():
            for _, _, linear in linears(model):
                linear.weight.normal_(std=linear.in_features**-0.5)
    return model


def trained_on(start: nn.Module, images: Tensor) -> tuple[list[float], nn.Module]:
    """The losses of 15 updates of a copy, and the copy."""
    trained = copy.deepcopy(start).train()
    labels = torch.arange(len(images)) % 10
    optimizer = torch.optim.AdamW(decay_groups(trained, 0.05), lr=2e-3)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(trained(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, trained.eval()


@torch.no_grad()
def answers(model: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = model(images)
    return logits
