"""DDP whose gradients travel as bfloat16: half the bytes on the wire, and eight bits of each number.

A bucket is cast before its all-reduce and back after it; weights, compute and optimizer stay in float32. Rounding is
relative to a rank's gradient and not to the mean of all, so where ranks nearly cancel, AdamW's step may turn round.

Source: https://docs.pytorch.org/docs/stable/ddp_comm_hooks.html
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

from archbench.models.parallel import ParallelCase
from archbench.models.parallel._build import built
from archbench.models.parallel._gate import ROUNDED
from archbench.models.parallel._ways.data_parallel import DataParallel
from archbench.track import Contender


class Compressed(DataParallel):
    sent_bytes = 2

    def wrapped(self, model: nn.Module) -> nn.Module:
        found: Any = super().wrapped(model)
        found.register_comm_hook(None, averaged)
        return found


def averaged(state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's hook under another name: DDP allows that one on NCCL alone, and gloo adds bfloat16 as well."""
    return bf16_compress_hook(state, bucket)


trainer = Compressed

CONTENDER: Contender[ParallelCase] = Contender(
    build=built(__name__), family="torch", differs="gradients are rounded to bfloat16 on the wire", gate=ROUNDED
)
