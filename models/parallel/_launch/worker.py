"""A rank's process before it knows torch: it follows its launcher, can be found, and says why it ends.

Importing torch takes seconds, in which a process can be killed or left alone like at any other time. So what makes
it findable comes first, and the work (``_launch/member.py``) after it.

The elastic rendezvous numbers hosts by their addresses, as they sort. The driver talks to rank 0, so that must be on
the first host: ranks are numbered by the host's own number instead.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from archbench.endings import die_with
from archbench.models.parallel._launch.ends import note

LAUNCHER = "ARCHBENCH_LAUNCHER"  # the process id of the launcher that started a rank


def main() -> None:
    spec: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    die_with(int(os.environ[LAUNCHER]))
    folder, local = Path(spec["folder"]), int(os.environ["LOCAL_RANK"])
    rank = spec["node_rank"] * spec["ranks_per_node"] + local
    os.environ["RANK"] = str(rank)
    (folder / f"pid-{os.getpid()}").write_text(f"{rank} {local}")
    stack = (folder / f"stack-{rank}").open("w")
    faulthandler.register(signal.SIGUSR1, file=stack)  # the driver asks where a rank is that does not answer
    try:
        from archbench.models.parallel._launch.member import take_part

        take_part(spec)
    except BaseException as error:  # noqa: BLE001 - foreign code: whatever it raises, the reader is told
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))  # where memory was short: to say so takes some
        note(folder, rank, error)
        traceback.print_exc()
        sys.stdout.flush()
        # At once: to leave a group whose others are stuck can take for ever.
        os._exit(error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1)


if __name__ == "__main__":
    main()
