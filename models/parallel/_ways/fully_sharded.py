"""Parameters, gradients and optimizer state cut over the ranks (FSDP2): what the kinds of it share.

Two parts of the model in a row are a group: gathered before use, freed afterwards, in the forward and again in the
backward. A group of one would be freed sooner, and a third of the time that sharding costs is begun collectives and not
bytes. Optimizer state never exists in whole.

Source: Zhao et al. 2023, arXiv:2304.11277; Rajbhandari et al. 2019, arXiv:1910.02054 (ZeRO)
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from archbench.models.parallel._measures.wire import FLOAT_BYTES, RING
from archbench.models.parallel._trainer import Replicas

GROUP = 2  # parts of the model


class FullySharded(Replicas):
    """PyTorch's ``fully_shard`` over all ranks."""

    gathered_bytes = FLOAT_BYTES  # of a parameter's number on the wire

    def wrapped(self, model: nn.Module) -> nn.Module:
        return sharded(model, self.world.mesh("shard"))

    def weights_formula(self) -> float:
        return super().weights_formula() / self.world.size

    def wire_formula(self) -> float:
        """Parameters are gathered twice, gradients scattered once."""
        sizes = 2 * self.gathered_bytes + FLOAT_BYTES
        return RING["allgather"](self.world.size) * sizes * super().weights_formula()


def sharded(
    model: nn.Module, mesh: DeviceMesh, precision: MixedPrecisionPolicy | None = None, reshard: bool = True
) -> nn.Module:
    """The model itself, its parts cut over the mesh; its result is float32.

    ``reshard``: free what was gathered after the forward.
    """
    policy = precision or MixedPrecisionPolicy()
    parts = list(model.children())
    for start in range(0, len(parts), GROUP):
        fully_shard(parts[start : start + GROUP], mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    return fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(output_dtype=torch.float32))
