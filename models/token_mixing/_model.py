"""A small pre-norm transformer encoder whose mixing of tokens is a constructor argument.

Characters are embedded, or patches of an image are projected; learned positions are added; blocks of mixing and
feed-forward layer follow; a head classifies the masked characters, or the mean over all patches. The mixings are those
of the mixing_block track, so what is timed there is what is trained here.

Letters: B batch, T length, D width, C channels, I height and width of an image, P of a patch, V classes (characters),
M masked positions of a sample.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824; Devlin et al. 2018, arXiv:1810.04805; Dosovitskiy et al. 2020,
arXiv:2010.11929
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from archbench.kernels.mixing_block._layers import Block, SelfAttention
from archbench.models.token_mixing import TokenMixingCase
from archbench.models.token_mixing._tasks import task_of
from archbench.models.train import seeded
from archbench.track import Unavailable

INITIAL_STD = 0.02  # of embeddings, as BERT has it
HIDDEN_MULTIPLE = 8

MixingOf = Callable[[int], nn.Module | None]  # the mixing of layer 0, 1, ..., or None
Factory = Callable[[int], nn.Module]


class Encoder(nn.Module):
    """``blocks``, between an embedding and a head; see ``MaskedCharacters`` and ``ImagePatches``."""

    def __init__(
        self, embedding: nn.Module, classes: int, case: TokenMixingCase, mixing: MixingOf, hidden: int
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.position_TD = nn.Parameter(torch.randn(case.length, case.width) * INITIAL_STD)
        self.blocks = nn.ModuleList(Block(case.width, hidden, mixing(layer)) for layer in range(case.layers))
        self.norm = nn.LayerNorm(case.width)
        self.head = nn.Linear(case.width, classes)

    def encoded(self, tokens: Tensor) -> Tensor:
        x_BTD = self.embedding(tokens) + self.position_TD
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.norm(x_BTD)


class MaskedCharacters(Encoder):
    """``tokens_BT, positions_BM -> logits_BMV``: the characters that are masked at these positions."""

    def __init__(self, case: TokenMixingCase, mixing: MixingOf, hidden: int) -> None:
        characters = task_of(case).classes
        embedding = nn.Embedding(characters + 1, case.width)  # the last one is the mask
        nn.init.normal_(embedding.weight, std=INITIAL_STD)
        super().__init__(embedding, characters, case, mixing, hidden)

    def forward(self, tokens_BT: Tensor, positions_BM: Tensor) -> Tensor:
        x_BTD = self.encoded(tokens_BT)
        index_BMD = positions_BM[..., None].expand(-1, -1, x_BTD.shape[-1])
        return self.head(x_BTD.gather(1, index_BMD))


class ImagePatches(Encoder):
    """``images_BCII -> logits_BV``: the class of an image from the mean over its patches."""

    def __init__(self, case: TokenMixingCase, mixing: MixingOf, hidden: int) -> None:
        channels, classes = task_of(case).channels, task_of(case).classes
        embedding = nn.Sequential(nn.PixelUnshuffle(case.patch), nn.Flatten(2), _Transposed())
        embedding.append(nn.Linear(channels * case.patch**2, case.width))
        super().__init__(embedding, classes, case, mixing, hidden)

    def forward(self, images_BCII: Tensor) -> Tensor:
        return self.head(self.encoded(images_BCII).mean(1))


class _Transposed(nn.Module):
    def forward(self, x_BCT: Tensor) -> Tensor:
        return x_BCT.mT


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def hidden_for(case: TokenMixingCase, mixing: MixingOf) -> int:
    """The feed-forward width with which a model has the parameters of the one with attention and four times its width.

    A layer's width costs ``2 D + 1`` parameters each, the same in every layer. Raises Unavailable where the mixing
    alone has more parameters than are to be had.
    """

    def mixing_parameters(chosen: nn.Module | None) -> int:
        return 0 if chosen is None else parameters_of(chosen) + 2 * case.width

    with torch.device("meta"):
        spent = sum(mixing_parameters(mixing(layer)) for layer in range(case.layers))
        allowed = case.layers * mixing_parameters(SelfAttention(case.width, case.heads))
    wider = (allowed - spent) / (case.layers * (2 * case.width + 1))
    hidden = HIDDEN_MULTIPLE * round((4 * case.width + wider) / HIDDEN_MULTIPLE)
    if hidden < HIDDEN_MULTIPLE:
        raise Unavailable(
            f"the mixing alone has {spent:,} parameters at length {case.length}, "
            f"more than the blocks with attention have altogether"
        )
    return hidden


def factory(case: TokenMixingCase, mixing: MixingOf) -> Factory:
    """``seed -> model``, on the CPU, with as many parameters as the model with attention."""
    hidden = hidden_for(case, mixing)
    kind = MaskedCharacters if case.text else ImagePatches

    def build(seed: int) -> nn.Module:
        with seeded(seed):
            return kind(case, mixing, hidden)

    build(0)  # what is wrong with the data or the sizes is said before anything is timed
    return build
