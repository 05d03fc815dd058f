"""What the harness does to inputs and outputs without knowing the framework: copy, compare, refill, measure.

Works on torch tensors and numpy arrays, alone or in tuples, lists and dicts; everything else passes through.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np

from archbench.checks import flatten, to_float64


def is_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def duplicate(value: Any) -> Any:
    """A deep copy that shares no memory with ``value``."""
    if is_tensor(value):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) in (tuple, list):
        return type(value)(duplicate(item) for item in value)
    if type(value) is dict:
        return {key: duplicate(item) for key, item in value.items()}
    return copy.deepcopy(value)


def same(a: Any, b: Any) -> bool:
    """Bitwise equality of values (NaN equals NaN)."""
    if is_tensor(a) and is_tensor(b):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"))
    if type(a) in (tuple, list) and type(a) is type(b):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if type(a) is dict and type(b) is dict:
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def refill(target: tuple[Any, ...], source: tuple[Any, ...]) -> bool:
    """Copy new values into the same memory. False where an entry cannot be refilled in place."""
    for old, new in zip(target, source, strict=True):
        if is_tensor(old) and old.shape == new.shape:
            old.detach().copy_(new)
        elif isinstance(old, np.ndarray) and old.shape == new.shape:
            old[...] = new
        elif not same(old, new):
            return False
    return True


def size_bytes(value: Any) -> int:
    """Bytes the tensors of ``value`` hold."""
    if is_tensor(value):
        return int(value.numel() * value.element_size())
    if isinstance(value, np.ndarray):
        return int(value.nbytes)
    if type(value) in (tuple, list):
        return sum(size_bytes(item) for item in value)
    if type(value) is dict:
        return sum(size_bytes(item) for item in value.values())
    return 0


def snapshot(outputs: Any) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Host float64 copies of all outputs, taken now. Raises ``checks.Wrong`` for what is not a plain array."""
    return {name: to_float64(value, name).copy() for name, value in flatten(outputs).items()}
