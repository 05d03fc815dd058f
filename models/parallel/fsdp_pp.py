"""Two dimensions: two pipeline stages, and each stage's parameters cut over the ranks that share it (FSDP2).

The mesh is (stage, shard). Ranks of one stage see different halves of the batch, ranks of one shard pass micro-batches
on to each other, one forward, one backward. A stage's parameters are gathered once an update and freed after the last
micro-batch, since gathering them for each of M would move M times the bytes.

Letters: B sequences of the global batch, L tokens.

Source: Narayanan et al. 2021, arXiv:2104.04473; Zhao et al. 2023, arXiv:2304.11277
"""

import torch
from torch import Tensor, distributed
from torch.distributed.pipelining import Schedule1F1B

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import Training, built
from archbench.models.parallel._measures.wire import FLOAT_BYTES, RING
from archbench.models.parallel._model import language_model, loss_of, optimizer_of
from archbench.models.parallel._trainer import Mark, Trainer, World
from archbench.models.parallel._ways.fully_sharded import sharded
from archbench.models.parallel._ways.partition import stage_of
from archbench.models.parallel._ways.pipeline_torch import TimedStage
from archbench.models.parallel._ways.schedule import bubble_formula
from archbench.models.parallel._ways.timeline import Timeline
from archbench.track import Contender, Unavailable

STAGES = SHARDS = 2


class ShardedStage(Trainer):
    """A rank's shard of its stage."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        case = world.case
        mesh = world.mesh("stage", "shard", shape=(STAGES, SHARDS))
        stage, self.part = divmod(world.rank, SHARDS)
        self.is_first, self.is_last = stage == 0, stage == STAGES - 1
        whole = language_model(case).to(world.device)
        model = stage_of(world, whole, stage, STAGES, case.batch // SHARDS // case.micro_batches)
        self.weights = sum(parameter.numel() for parameter in model.parameters())
        self.model = sharded(model, mesh["shard"], reshard=False)
        self.optimizer = optimizer_of(self.model)
        self.timeline = Timeline(world.device)
        self._stage = TimedStage(self.timeline, self.model, stage, STAGES, world.device, group=mesh.get_group("stage"))
        self._schedule = Schedule1F1B(self._stage, case.micro_batches, loss_fn=self._micro_loss, scale_grads=False)
        self.keep()

    def step(self, batch: Tensor) -> Tensor:
        self.timeline.begin()
        own = batch.chunk(SHARDS)[self.part]
        losses: list[Tensor] = []
        self._schedule.step(
            *((own[:, :-1],) if self.is_first else ()),
            target=own[:, 1:] if self.is_last else None,
            losses=losses,
            return_outputs=False,
        )
        part = torch.stack(losses).detach().sum() / SHARDS if losses else torch.zeros((), device=self.world.device)
        told = distributed.all_reduce(part, async_op=True)
        with self.timeline.piece("update"):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        told.wait()
        return part

    def _micro_loss(self, logits_BLV: Tensor, targets_BL: Tensor) -> Tensor:
        with self.timeline.piece("forward", self._stage.part):
            return loss_of(logits_BLV, targets_BL) / self.world.case.micro_batches

    def marks(self) -> list[Mark]:
        return self.timeline.marks()

    def bubble_formula(self) -> float:
        return bubble_formula(STAGES, self.world.case.micro_batches)

    def weights_formula(self) -> float:
        return self.weights / SHARDS

    def wire_formula(self) -> float:
        """Activations or their gradients of this rank's half; parameters gathered once, gradients scattered once."""
        case = self.world.case
        passed = FLOAT_BYTES * case.batch // SHARDS * case.length * case.dim
        return passed + 2 * RING["allgather"](SHARDS) * FLOAT_BYTES * self.weights


trainer = ShardedStage


def build(case: ParallelCase) -> Training:
    """Raises Unavailable where the ranks or the batch do not fit the mesh."""
    if case.world != STAGES * SHARDS:
        raise Unavailable("needs 4 ranks: two stages of two")
    if case.micro_batches < STAGES or case.batch % (SHARDS * case.micro_batches):
        raise Unavailable(
            f"needs {STAGES} micro-batches or more, and a batch that {SHARDS} shards of {case.micro_batches} divide"
        )
    return built(__name__)(case)


CONTENDER: Contender[ParallelCase] = Contender(build=build, family="torch")
