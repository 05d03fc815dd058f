"""A Vision Transformer in one file, with the names public DeiT and ViT weights have.

Patches become tokens by one convolution, a class token goes before them, positions are added; blocks of self-attention
and a two-layer GELU network, normalised before each; the class token's last state gives the classes. Every matrix is an
``nn.Linear`` that a quantised one can replace (``_layers.py``); so are attention's two products and the GELU modules.

Letters: N images, C channels, H height, W width, P patch, T tokens, D features, M heads.

Source: Dosovitskiy et al. 2020, arXiv:2010.11929; Touvron et al. 2020, arXiv:2012.12877 (DeiT); names as timm's
https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/vision_transformer.py
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-6  # of layer norms, as timm has it
DEVIATION = 0.02  # of positions and the class token before training


@dataclass(frozen=True)
class Size:
    """A network."""

    image: int
    patch: int
    dim: int
    depth: int
    heads: int
    classes: int
    channels: int = 3

    @property
    def tokens(self) -> int:
        """The class token and a token for each patch."""
        return 1 + (self.image // self.patch) ** 2

    @property
    def weights(self) -> int:
        """Of the blocks' matrices."""
        return self.depth * 12 * self.dim**2

    def multiply_adds(self) -> float:
        """Of one image's forward pass: matrices, attention, patches, classes."""
        blocks = self.tokens * self.weights + 2.0 * self.depth * self.tokens**2 * self.dim
        return blocks + (self.tokens - 1) * self.channels * self.patch**2 * self.dim + self.dim * self.classes


class PatchEmbed(nn.Module):
    """(N, C, H, W) -> (N, T - 1, D)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.proj = nn.Conv2d(size.channels, size.dim, size.patch, size.patch)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return self.proj(images_NCHW).flatten(2).transpose(1, 2)


class Mix(nn.Module):
    """softmax(q k^T / sqrt(D / M)) v: (N, M, T, D / M) three times -> the same."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """(N, T, D) -> (N, T, D)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.qkv = nn.Linear(size.dim, 3 * size.dim)
        self.mix = Mix()
        self.proj = nn.Linear(size.dim, size.dim)

    def forward(self, x_NTD: Tensor) -> Tensor:
        q, k, v = self.qkv(x_NTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (N, M, T, D / M) each
        mixed = self.mix(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """(N, T, D) -> (N, T, D)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.dim, 4 * size.dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * size.dim, size.dim)

    def forward(self, x_NTD: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x_NTD)))


class Block(nn.Module):
    """(N, T, D) -> (N, T, D)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.dim, EPS)
        self.attn = Attention(size)
        self.norm2 = nn.LayerNorm(size.dim, EPS)
        self.mlp = Mlp(size)

    def forward(self, x_NTD: Tensor) -> Tensor:
        x_NTD = x_NTD + self.attn(self.norm1(x_NTD))
        return x_NTD + self.mlp(self.norm2(x_NTD))


class VisionTransformer(nn.Module):
    """(N, C, H, W) -> (N, classes)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.patch_embed = PatchEmbed(size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, size.tokens, size.dim))
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.dim, EPS)
        self.head = nn.Linear(size.dim, size.classes)
        self._start()

    def _start(self) -> None:
        """Lengths stay as they are through a matrix; a deviation of 0.02 is five times too small for 96 features."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=DEVIATION)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        patches = self.patch_embed(images_NCHW)
        x_NTD = torch.cat((self.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + self.pos_embed
        for block in self.blocks:
            x_NTD = block(x_NTD)
        return self.head(self.norm(x_NTD)[:, 0])
