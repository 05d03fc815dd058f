"""asv's machine file, written without asking.

asv looks its machine up under the host name; our name is made from the hardware. So the file gets the entry twice:
under our name, and under the host name as an alias whose ``machine`` field is ours. The host name stays in the
user's home and never reaches a result.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from archbench.hardware.detect import Host

API_VERSION = 1


def machine_entry(host: Host, name: str) -> dict[str, str]:
    """asv's fields, and ours, which flow into results and published parameters. Nothing volatile."""
    entry = {
        "machine": name,
        "os": host.os_name,
        "arch": host.cpu.architecture,
        "cpu": host.cpu.model,
        "num_cpu": str(host.cpu.cores),
        "ram": str(host.memory_bytes // 1024),
    }
    if host.gpus:
        entry |= {"gpu": host.gpus[0].name, "driver": host.gpus[0].driver}
    if host.board:
        entry["board"] = host.board.model
    return entry


def write(host: Host, name: str, path: Path | None = None) -> Path:
    """Add this machine to ``~/.asv-machine.json``, keeping the others. Raises ValueError for one that is not JSON."""
    path = path or Path.home() / ".asv-machine.json"
    known: dict[str, Any] = {}
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}): move it away and try again") from error
        if not isinstance(known, dict) or known.get("version", API_VERSION) != API_VERSION:
            raise ValueError(f"{path} is not asv's machine file of version {API_VERSION}: move it away and try again")
    entry = machine_entry(host, name)
    known |= {name: entry, platform.node(): entry, "version": API_VERSION}
    staged = path.with_name(f"{path.name}.{os.getpid()}")
    staged.write_text(json.dumps(known, indent=4), encoding="utf-8")
    os.replace(staged, path)
    return path
