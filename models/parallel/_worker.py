"""A rank: joins the others, builds its trainer, and answers what the driver asks until the driver is gone.

Rank 0 holds the connection. What it is asked goes to the others over a group of its own on gloo, which waits without
using a core or a GPU; a thread of the launcher ends this process when another rank ends.
"""

from __future__ import annotations

import importlib
import json
import mmap
import os
import sys
import time
from datetime import timedelta
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record

from archbench.models.parallel import BACKENDS, TRACK, ParallelCase
from archbench.models.parallel._ranks import NOTE
from archbench.models.parallel._trainer import Trainer, World

WAITING = timedelta(days=1)  # between two questions nobody is late


class Rank:
    """What this process has: its place among the ranks, its trainer, its line in the driver's notes."""

    def __init__(self, spec: dict[str, Any]) -> None:
        case = TRACK.case(spec["case"])
        assert isinstance(case, ParallelCase)
        self.rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local = int(os.environ["LOCAL_RANK"])
        folder = Path(spec["folder"])
        (folder / f"pid-{os.getpid()}").touch()
        with (folder / "notes").open("r+b") as file:
            self._notes = mmap.mmap(file.fileno(), 0)
        self._calls = self._updates = 0
        device = torch.device("cuda", local) if BACKENDS[case.backend] == "cuda" else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])))
        distributed.init_process_group(case.backend)
        self._control = distributed.new_group(backend="gloo", timeout=WAITING)
        world = World(case, self.rank, size, device)
        self.trainer: Trainer = importlib.import_module(spec["module"]).trainer(world)
        self.world = world
        self._connection = None
        if self.rank == 0:
            self._connection = Client(str(folder / "driver"), "AF_UNIX", authkey=bytes.fromhex(spec["key"]))

    def serve(self) -> None:
        while True:
            asked: list[Any] = [self._connection.recv() if self._connection else None]
            distributed.broadcast_object_list(asked, src=0, group=self._control)
            what, arguments = asked[0]
            if what == "close":
                return
            self._calls, self._updates = self._calls + 1, 0
            answer = getattr(self, what)(*arguments)
            if self._connection:
                self._connection.send(answer)

    def note(self) -> None:
        """An update begins."""
        self._updates += 1
        NOTE.pack_into(self._notes, self.rank * NOTE.size, self._calls, self._updates, time.monotonic())

    def train(self, tokens: Any) -> dict[str, Any]:
        """The track's call: losses and digest, of rank 0."""
        batches = torch.from_numpy(tokens).to(self.world.device)
        self.trainer.reset()
        losses = []
        for batch in batches:
            self.note()
            losses.append(self.trainer.step(batch))
        return {"losses": torch.stack(losses).float().cpu().numpy(), "digest": self._digest()}

    def _digest(self) -> Any:
        """Sum and sum of squares of each parameter of the whole model, by name; only rank 0 needs them."""
        own = [
            (shard.name, float(shard.values.double().sum()) / shard.copies, float(shard.values.double().square().sum()) / shard.copies)
            for shard in self.trainer.shards()
        ]  # fmt: skip
        everyone: list[Any] | None = [None] * self.world.size if self.rank == 0 else None
        distributed.gather_object(own, everyone, dst=0, group=self._control)
        sums: dict[str, list[float]] = {}
        for name, total, squares in (entry for entries in everyone or () for entry in entries):
            found = sums.setdefault(name, [0.0, 0.0])
            found[0] += total
            found[1] += squares
        return torch.tensor([sums[name] for name in sorted(sums, key=_order)], dtype=torch.float64).numpy()


def _order(name: str) -> tuple[int, str]:
    """Parts of the model in order: "10.up.bias" after "2.up.bias"."""
    part, _, rest = name.partition(".")
    return int(part), rest


@record
def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    try:
        Rank(spec).serve()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


if __name__ == "__main__":
    main()
