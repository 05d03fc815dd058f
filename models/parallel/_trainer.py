"""What a rank does: its part of the model, and one update of it. Each contender's file defines one as ``trainer``.

A trainer is told nothing of processes it does not talk to: it gets its ``World`` and the whole batch, and takes its own
part of it. Beginning again means the same tensors with their first values, so a call never allocates what the call
before it had.

Letters: B sequences of the global batch, L tokens, P parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from archbench.models.parallel import BACKENDS, ParallelCase
from archbench.models.parallel._model import language_model, loss_of, optimizer_of
from archbench.models.parallel._ways.sharding import Gathered, digest, local, shards_of, whole
from archbench.models.parallel._ways.sharding import Shard as Shard


@dataclass(frozen=True)
class World:
    """The ranks of a call, seen from one of them."""

    case: ParallelCase
    rank: int
    size: int
    device: torch.device

    def mesh(self, *names: str, shape: tuple[int, ...] | None = None) -> DeviceMesh:
        return init_device_mesh(BACKENDS[self.case.backend], shape or (self.size,), mesh_dim_names=names)

    def own(self, batch: Tensor) -> Tensor:
        """This rank's sequences where the batch is cut by ranks: (B / W, L + 1)."""
        return batch.chunk(self.size)[self.rank]


class Mark(NamedTuple):
    """A piece of the last update on this rank, in seconds of the monotonic clock, which a node's ranks share."""

    what: str  # "forward", "backward", "update", "wait"
    start_s: float
    stop_s: float
    part: int | None = None  # the micro-batch


class Trainer(ABC):
    """A rank's part of the model. Subclasses set ``model`` and ``optimizer`` and then call ``keep``."""

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, world: World) -> None:
        self.world = world

    def keep(self) -> None:
        """Remember the values to begin again with."""
        self._first = [local(p).detach().clone() for p in self.model.parameters()]

    def reset(self) -> None:
        """Begin again."""
        with torch.no_grad():
            for parameter, first in zip(self.model.parameters(), self._first, strict=True):
                local(parameter).copy_(first)
            for state in self.optimizer.state.values():
                for value in state.values():
                    local(value).zero_()
        self.optimizer.zero_grad(set_to_none=True)

    @abstractmethod
    def step(self, batch: Tensor) -> Tensor:
        """One update on the global batch (B, L + 1); the mean loss over it before, the same on every rank."""

    def marks(self) -> list[Mark]:
        """The pieces of the last update; none where a trainer keeps no such record."""
        return []

    def wire_formula(self) -> float | None:
        """Bytes this rank sends in an update, as a formula has it; None where there is none."""
        return None

    def weights_formula(self) -> float | None:
        """Numbers of parameters this rank holds, as a formula has it; None where there is none."""
        return None

    def bubble_formula(self) -> float | None:
        """The share of idle time of a pipeline whose pieces are equally long; None where there is no pipeline."""
        return None

    def shards(self) -> Iterator[Shard]:
        """What this rank holds. Every number of the model is on some rank, as often as ``copies`` says."""
        return shards_of(self.model, self.world.size)

    def digest(self, gathered: Gathered) -> Any:
        """What the gate sees of the whole model (P, 3), on rank 0; see ``_ways/sharding.py``."""
        return digest(self.shards(), self._first, gathered)

    def whole(self, gathered: Gathered) -> dict[str, Any]:
        """Every parameter of the model by name, on rank 0."""
        return whole(self.shards(), gathered)


class Replicas(Trainer):
    """The whole model on every rank, which sees its part of the batch."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.model = language_model(world.case).to(world.device)
        self.call = self.wrapped(self.model)
        self.optimizer = optimizer_of(self.model)
        self.keep()

    def wrapped(self, model: nn.Module) -> nn.Module:
        """What is called in the model's place. It may also change the model itself."""
        return model

    def weights_formula(self) -> float:
        return float(sum(parameter.numel() for parameter in self.model.parameters()))

    def step(self, batch: Tensor) -> Tensor:
        own = self.world.own(batch)
        loss = loss_of(self.call(own[:, :-1]), own[:, 1:])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.mean(loss.detach())

    def mean(self, loss: Tensor) -> Tensor:
        """Over the ranks' parts, which are equally large."""
        if self.world.size > 1:
            torch.distributed.all_reduce(loss)
        return loss / self.world.size
