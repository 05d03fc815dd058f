"""What a rank holds of each parameter, and what all ranks hold together: three numbers of each, or all of it.

The gate of a timed call cannot move whole models. It gets a *digest*: of each parameter's change since the first
weights the sum, the sum of squares, and the sum weighted by u_i v_j, two fixed random vectors over its axes (Freivalds'
check: numbers at wrong places or from a wrong rank change it). A rank forms these of its shard alone, because it knows
where the shard lies; the sums over the ranks are those of the model. The change is taken in float32 without rounding
(Sterbenz: both are within a factor of two), so the digest sees what is far below the last digit of a weight's sum.

Letters: P parameters.

Source: Freivalds 1977, Probabilistic machines can use less running time
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from archbench.models.parallel._model import order

Gathered = Callable[[Any], list[Any]]  # every rank's value on rank 0, nothing elsewhere
NUMBERS = 3  # of a digest


class Shard(NamedTuple):
    """What a rank holds of one parameter."""

    name: str
    values: Tensor
    copies: int = 1  # how many ranks hold the same numbers
    start: tuple[int, ...] = ()  # where it begins in the whole parameter, by axis; empty: at its first number
    shape: tuple[int, ...] = ()  # of the whole parameter; empty: this is the whole


def shards_of(model: nn.Module, replicas: int) -> Iterator[Shard]:
    """A rank's shards, in the order of the model's parameters. ``replicas``: ranks that hold what is not cut."""
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            mesh, placements = parameter.device_mesh, parameter.placements
            cuts = 1
            for placement, count in zip(placements, mesh.shape, strict=True):
                cuts *= 1 if placement.is_replicate() else count
            _, start = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
            yield Shard(name, local(parameter).detach(), mesh.size() // cuts, tuple(start), tuple(parameter.shape))
        else:
            yield Shard(name, parameter.detach(), replicas)


def local(tensor: Any) -> Tensor:
    """The part of a tensor this rank holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def digest(shards: Iterable[Shard], first: Iterable[Tensor], gathered: Gathered) -> Any:
    """Of the whole model (P, 3), by name, on rank 0. ``first``: what each shard held at the beginning."""
    names, numbers = [], []
    for shard, before in zip(shards, first, strict=True):
        names.append(shard.name)
        numbers.append(moments(shard.values - before, shard.start) / shard.copies)
    sums: dict[str, Any] = {}
    for held in gathered(dict(zip(names, torch.stack(numbers).double().cpu().numpy(), strict=True))):
        for name, found in held.items():
            sums[name] = sums.get(name, 0.0) + found
    return np.array([sums[name] for name in sorted(sums, key=order)]).reshape(-1, NUMBERS)


def moments(values: Tensor, start: tuple[int, ...] = ()) -> Tensor:
    """Sum, sum of squares and weighted sum (3,) of a part of a parameter that begins at ``start``."""
    weighted, flat = values, values.reshape(-1)
    for axis in reversed(range(values.dim())):
        begin = start[axis] if start else 0
        weighted = weighted @ direction(axis, begin, values.shape[axis], values.device, values.dtype)
    return torch.stack((flat.sum(), flat.dot(flat), weighted))


@lru_cache(maxsize=512)
def direction(axis: int, begin: int, count: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A piece of an axis' random vector: no two numbers alike, root mean square 1."""
    numbers = np.random.default_rng(axis).uniform(-(3**0.5), 3**0.5, begin + count)
    return torch.from_numpy(numbers[begin:]).to(device, dtype)


def whole(shards: Iterable[Shard], gathered: Gathered) -> dict[str, Any]:
    """Every parameter of the model as an array by name, on rank 0. Where ranks hold copies: their mean."""
    own = [shard._replace(values=shard.values.cpu().numpy()) for shard in shards]
    found: dict[str, Any] = {}
    for part in (shard for held in gathered(own) for shard in held):
        shape = part.shape or part.values.shape
        into = found.setdefault(part.name, np.zeros(shape))
        start = part.start or (0,) * len(shape)
        place = tuple(slice(begin, begin + count) for begin, count in zip(start, part.values.shape, strict=True))
        into[place] += part.values / part.copies
    return {name: found[name] for name in sorted(found, key=order)}
