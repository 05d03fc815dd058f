"""torchrun for the ranks of one call: elastic launch, standard rendezvous, a file about the rank that failed.

A process of its own, because the launcher imports torch and leaves no thread of its supervisor in the process that
measures. What it leaves: ``failure.json`` with the rank that ended first, how, and its last lines.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

from archbench.models.parallel._ranks import LAST_LINES

LOOK_S = "0.1"  # how often the supervisor looks at its ranks


def arguments(spec: dict[str, Any]) -> list[str]:
    """What torchrun would be called with."""
    endpoint = spec["endpoint"] or "localhost:0"
    return [
        f"--nnodes={spec['nodes']}",
        f"--nproc-per-node={spec['ranks_per_node']}",
        f"--node-rank={spec['node_rank']}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={spec['run_id']}",
        f"--monitor-interval={LOOK_S}",
        "--max-restarts=0",
        f"--log-dir={spec['folder']}/logs",
        "--redirects=3",
        "--module",
        "archbench.models.parallel._worker",
        f"{spec['folder']}/spec.json",
    ]


def main(path: Path) -> int:
    spec = json.loads(path.read_text())
    config, command, rest = config_from_args(get_args_parser().parse_args(arguments(spec)))
    try:
        elastic_launch(config=config, entrypoint=command)(*rest)
    except ChildFailedError as error:
        rank, failed = error.get_first_failure()
        message = failed.message if isinstance(failed.message, str) else failed.message.get("message", "")
        found = {
            "rank": rank,
            "code": failed.exitcode,
            "message": _first_line(message) if Path(failed.error_file).is_file() else "",
            "lines": last_lines(Path(spec["folder"]) / "logs", failed.local_rank),
        }
        (path.parent / "failure.json").write_text(json.dumps(found))
        return 1
    return 0


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def last_lines(logs: Path, local_rank: int) -> list[str]:
    """Of what a rank wrote, the last lines that say something."""
    found: list[str] = []
    for path in sorted(logs.glob(f"*/attempt_0/{local_rank}/std*.log")):
        found += [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return found[-LAST_LINES:]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
