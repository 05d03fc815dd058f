"""A text as token ids: one character, one token.

The vocabulary is every character of the whole text in code-point order, so that both splits share it. The first nine
tenths are training text, the rest is test text.

Source: https://github.com/karpathy/char-rnn
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from archbench.models._data import BadData, Origin

if TYPE_CHECKING:
    from torch import Tensor

TRAIN_TENTHS = 9


def part(text: str, split: str, place: str) -> str:
    """The split's share of a text. Raises BadData when it is empty."""
    cut = len(text) * TRAIN_TENTHS // 10
    chosen = text[:cut] if split == "train" else text[cut:]
    if not chosen:
        raise BadData(f"{place}: the {split} part of {len(text)} characters is empty")
    return chosen


class Text:
    """A split of a text."""

    def __init__(self, text: str, characters: str, origin: Origin) -> None:
        self.origin = origin
        self.characters = characters
        self.vocabulary = len(characters)
        self._text = text

    def __len__(self) -> int:
        return len(self._text)

    def tokens(self) -> Tensor:
        """The text as int64 [N], each below ``vocabulary``."""
        import torch

        return torch.from_numpy(np.searchsorted(code_points(self.characters), code_points(self._text)).astype(np.int64))

    def decode(self, tokens: Tensor) -> str:
        """The characters of token ids [N]."""
        return "".join(self.characters[token] for token in tokens.tolist())


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
