"""ResNet-18 with the norm as an argument.

Two 3x3 convolutions a block, identity shortcuts, a 1x1 projection where the size changes, four stages of two blocks at
1, 2, 4 and 8 times the width. The stem is the paper's for ImageNet (7x7 with stride 2, then a pool), or one 3x3
convolution for images of 32 pixels. Parameters: 11,689,512 with 1,000 classes at width 64, as in the paper.

Without a norm ("none") plain initialisation would double the variance in every block. Fixup instead starts the last
convolution of each branch and the classifier at zero, so that every block is its shortcut, scales a branch's other
convolution by 1 / sqrt(branches), so that an update changes the network as much as it would a shallow one, and puts a
gain and shifts (here one for every channel) behind each convolution.

Letters: N images, C channels, H and W their size.

Source: He et al. 2015, arXiv:1512.03385; Zhang, Dauphin & Ma 2019, arXiv:1901.09321
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormLayer = Callable[[int], nn.Module]
GROUPS = 32
CHANNELS_A_GROUP = 4  # at least: of fewer channels, a slim network's groups would be instance norm


def batch(channels: int) -> nn.Module:
    """Statistics over N, H and W: of the batch in training, running ones in evaluation."""
    return nn.BatchNorm2d(channels)


def layer(channels: int) -> nn.Module:
    """Statistics over C, H and W of an image; gain and shift for every channel."""
    return nn.GroupNorm(1, channels)


def instance(channels: int) -> nn.Module:
    """Statistics over H and W of a channel of an image, with gain and shift."""
    return nn.InstanceNorm2d(channels, affine=True)


def group(channels: int) -> nn.Module:
    """Statistics over H, W and a group of channels of an image: 32 groups, fewer where they would be too small."""
    return nn.GroupNorm(min(GROUPS, max(1, channels // CHANNELS_A_GROUP)), channels)


class Scale(nn.Module):
    """What stands where a norm would be: one gain, and one shift for every channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # In the input's precision: under autocast a parameter of fp32 would make the output, and all behind it, fp32.
        gain, bias_C = self.gain.to(x_NCHW.dtype), self.bias.to(x_NCHW.dtype)
        return torch.addcmul(bias_C[:, None, None], x_NCHW, gain)


NORMS: dict[str, NormLayer] = {"batch": batch, "layer": layer, "instance": instance, "group": group, "none": Scale}


def convolution(inner: int, outer: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, size, stride=stride, padding=size // 2, bias=False)


class Block(nn.Module):
    """``relu(shortcut(x) + norm(conv(relu(norm(conv(x))))))``."""

    def __init__(self, inner: int, outer: int, stride: int, norm: NormLayer) -> None:
        super().__init__()
        self.conv1, self.norm1 = convolution(inner, outer, 3, stride), norm(outer)
        self.conv2, self.norm2 = convolution(outer, outer, 3), norm(outer)
        changes = stride != 1 or inner != outer
        self.shortcut = nn.Sequential(convolution(inner, outer, 1, stride), norm(outer)) if changes else nn.Identity()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        branch = F.relu(self.norm1(self.conv1(x_NCHW)), inplace=True)
        return F.relu(self.norm2(self.conv2(branch)) + self.shortcut(x_NCHW), inplace=True)


class ResNet18(nn.Module):
    """``x_NCHW`` of three channels (or ``channels``) to scores of the classes."""

    def __init__(self, norm: str, *, classes: int, width: int = 64, stem: str = "cifar", channels: int = 3) -> None:
        super().__init__()
        make = NORMS[norm]
        if stem == "imagenet":
            pool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
            self.stem = nn.Sequential(convolution(channels, width, 7, 2), make(width), nn.ReLU(inplace=True), pool)
        else:
            self.stem = nn.Sequential(convolution(channels, width, 3), make(width), nn.ReLU(inplace=True))
        sizes = [width << i for i in range(4)]
        blocks = []
        for i, outer in enumerate(sizes):
            inner = sizes[max(0, i - 1)]
            blocks += [Block(inner, outer, 2 if i else 1, make), Block(outer, outer, 1, make)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(sizes[-1], classes)
        self.apply(_start)
        if norm == "none":
            _fixup(blocks, self.head)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x_NCHW)).mean(dim=(2, 3)))


def _start(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


@torch.no_grad()
def _fixup(blocks: list[Block], head: nn.Linear) -> None:
    for block in blocks:
        block.conv1.weight.mul_(len(blocks) ** -0.5)
        nn.init.zeros_(block.conv2.weight)
    nn.init.zeros_(head.weight)
