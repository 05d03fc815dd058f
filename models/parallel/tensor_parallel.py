"""Tensor parallelism: every rank holds some heads and some neurons of every layer, and sees the whole batch.

Matrices into attention and feed-forward layer are cut by columns and those out of them by rows, so both run on a rank's
own heads and neurons, and one sum over the ranks ends each of them; the backward has two more, where the gradients of
their inputs meet. The token embedding is cut by width, the output matrix by vocabulary, and the loss is taken of logits
that stay cut. Norms and residual stream are the same on all ranks: cutting them by tokens too (sequence parallelism)
would need lengths that the ranks divide, and move the same bytes.

Letters: B sequences, L tokens, D width, W ranks.

Source: Shoeybi et al. 2019, arXiv:1909.08053 (Megatron-LM)
"""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleOutput,
    RowwiseParallel,
    loss_parallel,
    parallelize_module,
)

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._measures.wire import FLOAT_BYTES, RING
from archbench.models.parallel._model import loss_of
from archbench.models.parallel._trainer import Replicas
from archbench.models.parallel._ways.sharding import local
from archbench.track import Contender

# Query, key and value read one DTensor, so that their three gradients are added before they are summed over the ranks.
SHARED_INPUT = PrepareModuleOutput(
    output_layouts=Replicate(), desired_output_layouts=Replicate(), use_local_output=False
)
BLOCK: dict[str, ParallelStyle] = {
    "attention_norm": SHARED_INPUT,
    **{name: ColwiseParallel() for name in ("query", "key", "value", "up")},
    **{name: RowwiseParallel() for name in ("output", "down")},
}


class TensorParallel(Replicas):
    def wrapped(self, model: nn.Module) -> nn.Module:
        mesh = self.world.mesh("tensor")
        first, *blocks, last = model.children()
        parallelize_module(first, mesh, {"token": ColwiseParallel(output_layouts=Replicate())})
        for block in blocks:
            parallelize_module(block, mesh, BLOCK)
        parallelize_module(last, mesh, {"vocabulary": ColwiseParallel(use_local_output=False)})
        return model

    def step(self, batch: Tensor) -> Tensor:
        with loss_parallel():
            loss = loss_of(self.call(batch[:, :-1]), batch[:, 1:])
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return local(loss.detach())

    def weights_formula(self) -> float:
        """Matrices and their columns' biases are cut; what is added after a sum, and the norms, every rank has."""
        parameters = list(self.model.parameters())
        cut = sum(p.numel() for p in parameters if isinstance(p, DTensor) and p.placements[0].is_shard())
        return super().weights_formula() - cut * (1 - 1 / self.world.size)

    def wire_formula(self) -> float:
        """Of each block four sums of (B, L, D), of the head one, and the embedding is gathered."""
        case, n = self.world.case, self.world.size
        width = FLOAT_BYTES * case.batch * case.length * case.dim
        return width * ((4 * case.layers + 1) * RING["allreduce"](n) + RING["allgather"](n))


trainer = TensorParallel

CONTENDER: Contender[ParallelCase] = Contender(build=built(__name__), family="torch")
