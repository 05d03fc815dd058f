"""A stage of the model on each rank: what every pipeline has in common, and the one of our own.

A rank holds the parameters of its stage and nothing else of the model; its optimizer updates them alone. The batch is
cut into equal micro-batches, and the loss of each is divided by their number, so that gradients add up to those of the
mean over the batch. The last stage knows the loss and tells the others while they update.

``OwnPipeline`` interprets a schedule (``_ways/schedule.py``). What a pass needs comes over ``_ways/exchange.py``.

Letters: B sequences of the batch, M micro-batches, L tokens, D width.

Source: Huang et al. 2018, arXiv:1811.06965 (GPipe)
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, distributed

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import Training, built
from archbench.models.parallel._model import language_model, loss_of, optimizer_of
from archbench.models.parallel._trainer import Mark, Trainer, World
from archbench.models.parallel._ways.exchange import Inbox, Outbox
from archbench.models.parallel._ways.partition import stage_of
from archbench.models.parallel._ways.schedule import Slot, bubble_formula
from archbench.models.parallel._ways.sharding import Shard, shards_of
from archbench.models.parallel._ways.timeline import Timeline
from archbench.track import Unavailable


class Pipeline(Trainer):
    """A rank's stage. Subclasses say how the micro-batches get their gradients."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        case = world.case
        self.is_first, self.is_last = world.rank == 0, world.rank == world.size - 1
        self.sequences = case.batch // case.micro_batches
        whole = language_model(case).to(world.device)
        self.model = stage_of(world, whole, world.rank, world.size, self.sequences)
        self.optimizer = optimizer_of(self.model)
        self.timeline = Timeline(world.device)
        self.keep()

    @abstractmethod
    def gradients(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        """Add up the gradients of this stage over all micro-batches; on the last stage the loss of the batch.

        Both (B, L).
        """

    def step(self, batch: Tensor) -> Tensor:
        self.timeline.begin()
        loss = self.gradients(batch[:, :-1], batch[:, 1:])
        mean = torch.zeros((), device=self.world.device) if loss is None else loss
        told = distributed.broadcast(mean, src=self.world.size - 1, async_op=True)
        with self.timeline.piece("update"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        told.wait()
        return mean

    def micro_loss(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        """A micro-batch's share of the mean loss over the batch."""
        return loss_of(logits_BLV, targets_BL) / self.world.case.micro_batches

    def bubble_formula(self) -> float:
        return bubble_formula(self.world.size, self.world.case.micro_batches)

    def marks(self) -> list[Mark]:
        return self.timeline.marks()

    def shards(self) -> Iterator[Shard]:
        return shards_of(self.model, replicas=1)

    def wire_formula(self) -> float:
        """An activation forward to the stage behind, a gradient back to the one ahead, of every token."""
        case = self.world.case
        sends = (not self.is_first) + (not self.is_last)
        return sends * 4.0 * case.batch * case.length * case.dim


class OwnPipeline(Pipeline):
    """Does what a schedule says, slot by slot."""

    def __init__(self, world: World, schedule: Sequence[Slot]) -> None:
        super().__init__(world)
        self.schedule = schedule
        case = world.case
        back = [slot.part for slot in schedule if slot.what == "backward"]
        shape = (self.sequences, case.length, case.dim)
        # A stage's inputs are kept until their backward; a gradient is used up before the next but one arrives.
        ahead, behind = (None if self.is_first else world.rank - 1), (None if self.is_last else world.rank + 1)
        self._inputs = Inbox(ahead, shape, world.device, range(case.micro_batches), case.micro_batches)
        self._gradients = Inbox(behind, shape, world.device, back, 2)
        self._outputs, self._input_gradients = Outbox(behind), Outbox(ahead)
        self._last_forward = max(i for i, slot in enumerate(schedule) if slot.what == "forward")

    def gradients(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        self._tokens, self._targets = (part.chunk(self.world.case.micro_batches) for part in (tokens, targets))
        self._entered: dict[int, Tensor] = {}  # what a stage was given, by micro-batch
        self._results: dict[int, Tensor] = {}  # what it made of that, with what its backward needs
        self._losses: list[Tensor] = []
        self._inputs.open()
        for index, slot in enumerate(self.schedule):
            getattr(self, f"_{slot.what}")(slot)
            if index == self._last_forward:  # not before: a GPU's stream sends and receives in this order
                self._gradients.open()
        self._outputs.close()
        self._input_gradients.close()
        return torch.stack(self._losses).sum() if self.is_last else None

    def _forward(self, slot: Slot) -> None:
        part = slot.part
        entered = self._tokens[part] if self.is_first else self._inputs.take(part).requires_grad_()
        self._entered[part] = entered
        with self.timeline.piece("forward", part), torch.set_grad_enabled(slot.keeps):
            result = self._pass(part)
        if self.is_last:
            self._losses.append(result.detach())
        else:
            self._outputs.send(result.detach(), part)
        if slot.keeps:
            self._results[part] = result

    def _recompute(self, slot: Slot) -> None:
        with self.timeline.piece("recompute", slot.part):
            self._results[slot.part] = self._pass(slot.part)

    def _backward(self, slot: Slot) -> None:
        part = slot.part
        gradient = None if self.is_last else self._gradients.take(part)
        with self.timeline.piece("backward", part):
            self._results.pop(part).backward(gradient)
        entered = self._entered.pop(part)
        if not self.is_first:
            self._input_gradients.send(entered.grad, part)

    def _pass(self, part: int) -> Tensor:
        """A micro-batch through this stage: its output, or its share of the loss."""
        result: Tensor = self.model(self._entered[part])
        return self.micro_loss(result, self._targets[part]) if self.is_last else result


def pipelined(module: str) -> Callable[[ParallelCase], Training]:
    """A pipeline's ``build``: a rank for each stage, a part of the model at least for each rank."""

    def build(case: ParallelCase) -> Training:
        parts = case.layers + 2
        if case.world > parts:
            raise Unavailable(f"{case.world} stages: the model has {parts} parts (embedding, blocks, head)")
        return built(module)(case)

    return build
