"""The pipelines of torch.distributed.pipelining: our stages under one of its schedules.

Used as well as the library can be: the loss is divided by the number of micro-batches, which saves its pass over the
gradients, and the last stage's outputs are not collected.

Source: https://docs.pytorch.org/docs/stable/distributed.pipelining.html
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from archbench.models.parallel._trainer import World
from archbench.models.parallel._ways.pipeline import Pipeline
from archbench.models.parallel._ways.timeline import Timeline


class TimedStage(PipelineStage):
    """The library's stage, with a timeline of its passes."""

    def __init__(self, timeline: Timeline, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.timeline = timeline
        self.part = 0  # the micro-batch of the last forward pass

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **options: Any) -> Any:
        self.part = fwd_chunk_id
        with self.timeline.piece("forward", fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *arguments, **options)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **options: Any) -> Any:
        with self.timeline.piece("backward", bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, *arguments, **options)


class TorchPipeline(Pipeline):
    """A stage under a schedule of the library."""

    def __init__(self, world: World, schedule: type[PipelineScheduleSingle]) -> None:
        super().__init__(world)
        self._stage = TimedStage(self.timeline, self.model, world.rank, world.size, world.device)
        self._schedule = schedule(self._stage, world.case.micro_batches, loss_fn=self._timed_loss, scale_grads=False)

    def gradients(self, tokens: Tensor, targets: Tensor) -> Tensor | None:
        losses: list[Tensor] = []
        self._schedule.step(
            *((tokens,) if self.is_first else ()),
            target=targets if self.is_last else None,
            losses=losses,
            return_outputs=False,
        )
        return torch.stack(losses).detach().sum() if self.is_last else None

    def _timed_loss(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        with self.timeline.piece("forward", self._stage.part):
            return self.micro_loss(logits_BLV, targets_BL)
