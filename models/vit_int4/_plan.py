"""How many bits which operand of a network has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLOAT = 32

Ranges = Literal["absmax", "minmax", "rows", "least_squares"]


@dataclass(frozen=True)
class Bits:
    """Of one matrix product; 32: left in floating point. ``group``: inputs that share a weight's step; 0: all."""

    weights: int = FLOAT
    activations: int = FLOAT
    group: int = 0


@dataclass(frozen=True)
class Plan:
    """Which operands of a network are rounded, and how ranges are found (``_ranges.py``)."""

    blocks: Bits = Bits()  # the matrices of the blocks
    edges: Bits = Bits()  # the first and the last layer: patches and classes
    attention: int = FLOAT  # queries, keys, values and probabilities
    nonlinear: int = FLOAT  # what softmax and GELU are given
    ranges: Ranges = "least_squares"
