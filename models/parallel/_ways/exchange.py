"""Tensors from stage to stage: receives are posted before their tensor is needed, sends are not waited for.

A transfer runs as soon as both sides have named it. Where the receiver names it only when it needs the tensor, it waits
for the whole way; named early, the tensor arrives while something else is computed. Buffers are made once and used in
every update.

Two ranks must name their transfers in the same order, which a schedule gives: NCCL runs them one after the other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed


class Inbox:
    """Tensors of one shape from one rank, in a known order of micro-batches. Without a source nothing comes.

    With n buffers a tensor stays valid until n - 1 more were taken.
    """

    def __init__(
        self, source: int | None, shape: tuple[int, ...], device: torch.device, order: Sequence[int], buffers: int
    ) -> None:
        self._source = source
        self._order = order
        self._ahead = min(buffers, len(order)) - 1
        count = 0 if source is None else self._ahead + 1
        self._buffers = [torch.empty(shape, device=device) for _ in range(count)]
        self._posted: deque[tuple[int, Any, Tensor]] = deque()
        self._next = 0

    def open(self) -> None:
        """Post the first receives of an update."""
        self._next = 0
        for _ in range(self._ahead):
            self._post()

    def take(self, part: int) -> Tensor:
        """Wait for a micro-batch's tensor. The one that leaves a buffer free makes room for another."""
        self._post()
        expected, work, buffer = self._posted.popleft()
        assert expected == part, f"micro-batch {part} was asked for where {expected} comes next"
        work.wait()
        return buffer.detach()

    def _post(self) -> None:
        if self._source is not None and self._next < len(self._order):
            part = self._order[self._next]
            buffer = self._buffers[self._next % len(self._buffers)]
            self._posted.append((part, distributed.irecv(buffer, self._source, tag=part), buffer))
            self._next += 1


class Outbox:
    """Tensors to one rank. Each lives until it is sent: the one before is waited for when the next one goes."""

    def __init__(self, target: int | None) -> None:
        self._target = target
        self._under_way: tuple[Any, Tensor] | None = None

    def send(self, tensor: Tensor, part: int) -> None:
        self.close()
        self._under_way = (distributed.isend(tensor, self._target, tag=part), tensor)

    def close(self) -> None:
        """Wait for what is under way."""
        if self._under_way is not None:
            self._under_way[0].wait()
            self._under_way = None
