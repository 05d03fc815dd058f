"""Kill ranks of a real measuring run at random moments, and look at what becomes of it.

A copy of the tree measures contenders of the track parallel at its first case; whenever a cell has begun, one of the
ranks at work is killed with SIGKILL some seconds later. The row must name that rank within 30 s, the next cell must
begin, and nothing may be left of any of it when the run is over. A last cell is left alone and must be ok.

    python tests/parallel_faults.py --kills 20 --seed 1
"""

from __future__ import annotations

import argparse
import contextlib
import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from working_copy import Copy, copy_tree

WORKER = "archbench.models.parallel._launch.worker"
NAMED_S = 30.0
CELL_S = 400.0  # until a cell that is left alone is done
CASE = "l8-d256-len128-b16-m4-w2-gloo"
CONTENDERS = ("ddp", "fsdp", "gpipe_torch", "one_f_one_b")  # of two ranks, in the order asv asks for them
SMALL = """
from dataclasses import replace
TRACK = replace(TRACK, timing=replace(TRACK.timing, max_blocks=10, budget_s=2.0))
"""
LINE = re.compile(r"^\[\d+/\d+\] (?P<name>\S+) \S+ ?: (?P<outcome>.*)$")


@dataclass(frozen=True)
class Kill:
    """One rank killed, and what the run said of the cell."""

    rank: str
    after_s: float  # since the cell began
    contender: str
    named_s: float
    outcome: str

    @property
    def late(self) -> bool:
        """The cell had its numbers by then."""
        return not self.outcome.startswith(("crashed", "oom", "timeout", "unsupported"))

    @property
    def good(self) -> bool:
        return self.named_s <= NAMED_S and f"rank {self.rank} was killed by SIGKILL" in self.outcome


def ranks_at_work(mark: str) -> list[psutil.Process]:
    """The ranks of runs that have ``mark`` in their environment."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if WORKER in (process.info["cmdline"] or []) and process.environ().get("ARCHBENCH_FAULTS") == mark:
                found.append(process)
    return found


def left(mark: str) -> list[str]:
    """Processes that were started by the run and live."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("ARCHBENCH_FAULTS") == mark:
                found.append(" ".join(process.info["cmdline"] or [])[-100:])
    return found


class Run:
    """``archbench run`` in a copy; its lines come through a queue."""

    def __init__(self, tree: Copy, into: Path, scratch: Path, contenders: tuple[str, ...], case: str) -> None:
        self.mark = into.name
        names = [f"parallel/{name}" for name in contenders]
        environment = tree.environment | {"ARCHBENCH_FAULTS": self.mark, "TMPDIR": str(scratch)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "archbench", "run", *names, "--case", case, "--force", "--into", str(into)],
            cwd=tree.top,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        self.said: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.said.append(line)
            self.lines.put(line)

    def next_cell(self, within_s: float) -> re.Match[str] | None:
        """The next line about a cell; None where none comes."""
        until = time.monotonic() + within_s
        while (left_s := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                if found := LINE.match(self.lines.get(timeout=min(left_s, 1.0))):
                    return found
            if self.process.poll() is not None and self.lines.empty():
                return None
        return None

    def kill_one(self, chance: random.Random, after_s: float) -> Kill | None:
        """Kill a rank some seconds after the cell's first rank has begun; None where there is none."""
        until = time.monotonic() + CELL_S
        while not ranks_at_work(self.mark) and time.monotonic() < until and self.lines.empty():
            time.sleep(0.05)
        time.sleep(after_s)
        victims = ranks_at_work(self.mark)
        if not victims or not self.lines.empty():
            return None
        victim = chance.choice(victims)
        with contextlib.suppress(psutil.Error):
            local = victim.environ()["LOCAL_RANK"]
            began = time.monotonic()
            os.kill(victim.pid, signal.SIGKILL)
            cell = self.next_cell(CELL_S)
            name, outcome = (cell["name"], cell["outcome"]) if cell else ("?", "no row")
            return Kill(local, after_s, name, time.monotonic() - began, outcome)
        return None


def faults(
    tree: Copy, folder: Path, kills: int, seed: int, *, case: str = CASE, longest_s: float = 15.0
) -> tuple[list[Kill], list[str]]:
    """The kills, and what was wrong beside them."""
    chance = random.Random(seed)
    done: list[Kill] = []
    wrong: list[str] = []
    while len(done) < kills:
        into = folder / f"faults-{seed}-{len(done)}-{time.monotonic_ns()}"
        scratch = folder / f"tmp-{time.monotonic_ns()}"
        scratch.mkdir()
        run = Run(tree, into, scratch, CONTENDERS, case)
        for _ in CONTENDERS[:-1]:
            kill = run.kill_one(chance, chance.uniform(0, longest_s)) if len(done) < kills else None
            if kill is None:
                run.next_cell(CELL_S)
            elif not kill.late:
                done.append(kill)
                print(
                    f"{'ok' if kill.good else 'WRONG':6} {kill.contender:12} rank {kill.rank} killed after "
                    f"{kill.after_s:4.1f} s, row after {kill.named_s:4.1f} s: {kill.outcome[:120]}",
                    flush=True,
                )
        last = run.next_cell(CELL_S)
        run.process.wait(CELL_S)
        if last is None or last["outcome"].startswith(("crashed", "oom", "timeout", "unsupported", "wrong")):
            wrong.append(f"the cell that was left alone: {last['outcome'] if last else ''.join(run.said[-5:])}")
        wrong += [f"left behind: {line}" for line in left(run.mark)]
        wrong += [f"left behind: {path.name}" for path in scratch.glob("archbench-*")]
    return done, wrong + [f"named wrongly or late: {kill}" for kill in done if not kill.good]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archbench-faults-") as folder:
        tree = copy_tree(Path(folder) / "copy")
        package = tree.top / "models" / "parallel" / "__init__.py"
        package.write_text(package.read_text() + SMALL)
        tree.git("commit", "-qam", "Short cells")
        done, wrong = faults(tree, Path(folder), options.kills, options.seed)
    slowest = max(kill.named_s for kill in done)
    print(f"{len(done)} kills, slowest row after {slowest:.1f} s, {len(wrong)} problems")
    for problem in wrong:
        print(f"  {problem}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
