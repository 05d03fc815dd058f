"""Gates: no number without a right answer.

A gate gets the case, the inputs a contender saw and what it returned, and gives back the relative error or
raises ``Wrong`` naming index, got, expected and tolerance. Arrays may come from torch, numpy or anything
with ``__array__``; this module imports none of the frameworks.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np
import numpy.typing as npt

from archbench.track import CaseT

Array = npt.NDArray[np.float64]


class Wrong(Exception):
    """The answer is wrong; the message says where and by how much."""


@dataclass(frozen=True)
class Tolerance:
    """``|got - want| <= atol + rtol * |want|`` elementwise. ``reason`` says why these numbers are right."""

    rtol: float
    atol: float
    reason: str


def to_float64(value: Any, name: str = "output") -> Array:
    """A float64 host copy of a tensor or array of any dtype and device.

    Raises Wrong for anything that is not a plain, materialised array: lazy or fake tensors, generators, None.
    """
    kind = type(value)
    if _is_plain_tensor(value):
        if value.device.type == "meta" or value.is_sparse:
            raise Wrong(f"{name} holds no dense data (device {value.device}, layout {value.layout})")
        return np.asarray(value.detach().cpu().double().numpy())
    if kind is np.ndarray or isinstance(value, (int, float, np.generic)):
        return np.asarray(value, dtype=np.float64)
    raise Wrong(f"{name} is a {kind.__module__}.{kind.__qualname__}, not an array")


def _is_plain_tensor(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    # A subclass may compute when it is looked at, whatever it calls itself: the class itself is asked for.
    return torch is not None and type(value) in (torch.Tensor, torch.nn.Parameter)


def like(value: Any, example: Any, name: str = "output") -> None:
    """Raises Wrong unless ``value`` has the dtype and the device of ``example``: both torch tensors or numpy arrays."""
    if type(value) is not type(example):
        raise Wrong(f"{name} is a {type(value).__name__}, expected a {type(example).__name__}")
    if value.dtype != example.dtype:
        raise Wrong(f"{name} is {value.dtype}, expected {example.dtype}: another precision is another question")
    if _is_plain_tensor(value) and value.device != example.device:
        raise Wrong(f"{name} is on {value.device}, expected {example.device}")


def plausible_loss(outputs: Any, classes: int) -> float:
    """The error, 0, of a training step's loss: a finite scalar that a classifier of so many classes can have.

    A guess costs ln(classes); a model that has just begun is near it, one that trains on is below. Raises Wrong.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or type(outputs) is not torch.Tensor or outputs.ndim:
        raise Wrong(f"a step returned {type(outputs).__name__}, expected its loss, a scalar tensor")
    value, guess = float(to_float64(outputs, "loss")), math.log(classes)
    if not 0 <= value <= 2 * guess:
        raise Wrong(f"the loss is {value:.4g}; a guess among {classes} classes costs {guess:.3g}")
    return 0.0


def flatten(outputs: Any, name: str = "output") -> dict[str, Any]:
    """Outputs by name: a single array, a sequence of them, or a mapping. None entries are left out."""
    if isinstance(outputs, Mapping):
        return {str(key): value for key, value in outputs.items() if value is not None}
    if type(outputs) in (tuple, list):
        return {f"{name}[{i}]": value for i, value in enumerate(outputs) if value is not None}
    return {name: outputs}


def compare(got: Array, want: Array, tolerance: Tolerance, name: str = "output") -> float:
    """Relative L2 error ``|got - want| / |want|``. Raises Wrong on shape, non-finite values or excess."""
    if got.shape != want.shape:
        raise Wrong(f"{name} has shape {got.shape}, expected {want.shape}")
    if got.size == 0:
        return 0.0
    if not np.isfinite(got).all():
        bad = np.argwhere(~np.isfinite(got))
        where = tuple(int(i) for i in bad[0])
        raise Wrong(f"{name}{list(where)} is {got[where]}; {len(bad)} of {got.size} values are not finite")
    excess = np.abs(got - want) - (tolerance.atol + tolerance.rtol * np.abs(want))
    worst = np.unravel_index(int(np.argmax(excess)), got.shape)
    if excess[worst] > 0:
        raise Wrong(
            f"{name}{[int(i) for i in worst]} is {got[worst]:.6g}, expected {want[worst]:.6g}; tolerance "
            f"rtol={tolerance.rtol:g} atol={tolerance.atol:g} ({tolerance.reason}); "
            f"{int((excess > 0).sum())} of {got.size} values are off"
        )
    scale = float(np.linalg.norm(want))
    error = float(np.linalg.norm(got - want))
    return error / scale if scale else error


@dataclass(frozen=True)
class CloseTo(Generic[CaseT]):
    """Every output agrees with a float64 reference on the same inputs.

    ``reference(case, *inputs)`` returns the outputs in the same structure; ``tolerance(case)`` the bound, or
    one bound per output. The returned error is the largest over the outputs.
    """

    reference: Callable[..., Any]
    tolerance: Callable[[CaseT], Tolerance | Mapping[str, Tolerance]]

    def __call__(self, case: CaseT, inputs: tuple[Any, ...], outputs: Any) -> float:
        want = flatten(self.reference(case, *inputs))
        got = flatten(outputs)
        if got.keys() != want.keys():
            raise Wrong(f"returned {sorted(got) or 'nothing'}, expected {sorted(want)}")
        allowed = self.tolerance(case)
        errors = [0.0]
        for name, target in want.items():
            bound = allowed[name] if isinstance(allowed, Mapping) else allowed
            errors.append(compare(to_float64(got[name], name), to_float64(target, name), bound, name))
        return max(errors)


def close_to(
    reference: Callable[..., Any], tolerance: Callable[[CaseT], Tolerance | Mapping[str, Tolerance]]
) -> CloseTo[CaseT]:
    """The gate of a pure function with a float64 reference."""
    return CloseTo(reference, tolerance)
