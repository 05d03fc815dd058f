"""The hosts of one run, where it has several: how many, which of them this is, and where they meet.

``archbench run --nnodes 2 --node-rank 0 --rdzv-endpoint HOST:PORT`` says so, in torchrun's own words. What it starts is
told by environment variables. Only a track that starts processes of its own makes use of it: one whose package holds a
module ``_nodes``, which is run as ``python -m PACKAGE._nodes lead`` and ``follow`` (``archbench.harness.hosts``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

_COUNT, _RANK, _ENDPOINT = "ARCHBENCH_NNODES", "ARCHBENCH_NODE_RANK", "ARCHBENCH_RDZV_ENDPOINT"


@dataclass(frozen=True)
class Nodes:
    """Where a run's processes are. Raises ValueError for what cannot be."""

    count: int = 1
    rank: int = 0  # of this host; 0 measures, the others follow
    endpoint: str = ""  # HOST:PORT of the first host; empty: this host alone, any port

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"--nnodes is {self.count}: at least 1")
        if not 0 <= self.rank < self.count:
            raise ValueError(
                f"--node-rank is {self.rank}: the first host is 0, the last of {self.count} is {self.count - 1}"
            )
        if self.count > 1 and not self.endpoint:
            raise ValueError("more than one host: --rdzv-endpoint HOST:PORT says where the first one is met")
        if self.endpoint and not (re.fullmatch(r"[^\s:]+:\d{1,5}", self.endpoint) and 0 < self.port < 1 << 16):
            raise ValueError(f"--rdzv-endpoint is {self.endpoint!r}: give HOST:PORT, for example node01:29400")

    @property
    def host(self) -> str:
        return self.endpoint.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    @classmethod
    def told(cls, environment: Mapping[str, str] = os.environ) -> Nodes:
        """What this process was told. One host, unless somebody said otherwise."""
        return cls(int(environment.get(_COUNT, "1")), int(environment.get(_RANK, "0")), environment.get(_ENDPOINT, ""))

    def environment(self) -> dict[str, str]:
        """What tells another process."""
        return {_COUNT: str(self.count), _RANK: str(self.rank), _ENDPOINT: self.endpoint} if self.endpoint else {}

    def name(self, machine: str) -> str:
        """What rows of these hosts are filed under, with ``machine`` the name of the first: never among its own."""
        return f"{machine}-{self.count}-nodes" if self.count > 1 else machine

    def facts(self) -> dict[str, int]:
        """What a run's header says of it."""
        return {"nodes": self.count} if self.count > 1 else {}
