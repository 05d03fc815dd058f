"""A decoder-only transformer in one file: what every contender of the track trains.

Pre-norm blocks of causal self-attention and a GELU feed-forward layer between an embedding with learned positions and
an untied output matrix. It is a sequence of parts (embedding, blocks, head), each a module from one tensor to one
tensor, so that a pipeline can cut it anywhere between them. No dropout: nothing is drawn.

Letters: B sequences, L tokens, D width, H heads, V vocabulary.

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners (GPT-2)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from archbench.models.parallel import ParallelCase
from archbench.models.train import seeded

STD = 0.02
SEED = 0
LEARNING_RATE = 3e-4


class Embedding(nn.Module):
    """Tokens (B, L) -> (B, L, D)."""

    def __init__(self, case: ParallelCase) -> None:
        super().__init__()
        self.token = nn.Embedding(case.vocabulary, case.dim)
        self.position = nn.Embedding(case.length, case.dim)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        places_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
        return self.token(tokens_BL) + self.position(places_L)


class Block(nn.Module):
    """(B, L, D) -> (B, L, D). Heads are counted by the width of ``query``, which tensor parallelism cuts."""

    def __init__(self, case: ParallelCase) -> None:
        super().__init__()
        self.head_dim = case.dim // case.heads
        self.attention_norm = nn.LayerNorm(case.dim)
        self.query = nn.Linear(case.dim, case.dim)
        self.key = nn.Linear(case.dim, case.dim)
        self.value = nn.Linear(case.dim, case.dim)
        self.output = nn.Linear(case.dim, case.dim)
        self.feed_forward_norm = nn.LayerNorm(case.dim)
        self.up = nn.Linear(case.dim, 4 * case.dim)
        self.down = nn.Linear(4 * case.dim, case.dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        normed = self.attention_norm(x_BLD)
        q, k, v = (self._heads(part(normed)) for part in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, L, D / H)
        x_BLD = x_BLD + self.output(mixed.transpose(1, 2).flatten(2))
        return x_BLD + self.down(F.gelu(self.up(self.feed_forward_norm(x_BLD))))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class Head(nn.Module):
    """(B, L, D) -> logits (B, L, V)."""

    def __init__(self, case: ParallelCase) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(case.dim)
        self.vocabulary = nn.Linear(case.dim, case.vocabulary, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.vocabulary(self.norm(x_BLD))


class LanguageModel(nn.Sequential):
    """Tokens (B, L) -> logits (B, L, V). Parameters are called "0.token.weight", "1.query.weight" ... by part."""

    def __init__(self, case: ParallelCase) -> None:
        super().__init__(Embedding(case), *(Block(case) for _ in range(case.layers)), Head(case))


def language_model(case: ParallelCase) -> LanguageModel:
    """The model with its initial weights, the same in every process; smaller where a block adds its result."""
    with seeded(SEED):
        model = LanguageModel(case)
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
            else:
                added = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(parameter, std=STD / (2 * case.layers) ** 0.5 if added else STD)
    return model


def loss_of(logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
    """Mean cross-entropy over all tokens, in nats."""
    return F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten())


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW: two numbers of state for each parameter, which is what sharding saves. One pass over all of them.

    Parameters that are cut over ranks are a group of their own: the pass takes tensors of one kind.
    """
    parameters = list(model.parameters())
    kinds = [[p for p in parameters if isinstance(p, DTensor) is cut] for cut in (False, True)]
    groups = [{"params": kind} for kind in kinds if kind]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1, fused=True)


def order(name: str) -> tuple[int, str]:
    """Parts of the model in order: "10.up.bias" after "2.up.bias"."""
    part, _, rest = name.partition(".")
    return int(part), rest
