"""What the control group of this process allows: CPUs and memory, in version 1 and 2.

A container or a service sees the whole machine in ``/proc`` and may use a part of it. The limit of any ancestor holds,
so every folder from the process's own group up to the root is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 60  # version 1 writes a huge number where there is no memory limit


def read_text(path: Path) -> str:
    """A small system file's text without trailing NUL or newline; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's groups that may limit it, own group first, both hierarchies."""
    mount = root / "sys/fs/cgroup"
    paths = {"": PurePosixPath("/"), controller: PurePosixPath("/")}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, names, path = (*line.split(":", 2), "", "")[:3]
        if names == "":
            paths[""] = PurePosixPath(path)
        elif controller in names.split(","):
            paths[controller] = PurePosixPath(path)
    for base, own in ((mount, paths[""]), (mount / "unified", paths[""]), (mount / controller, paths[controller])):
        for group in (own, *own.parents):
            # Inside a namespace the path may lead out of what is mounted: "/../x". Such a group cannot be read.
            if ".." not in group.parts:
                yield base / group.relative_to("/")


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPUs this process may keep busy, or None where there is no limit."""
    found = []
    for folder in _folders(root, "cpu"):
        quota, _, period = read_text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _memory(folder: Path) -> tuple[int, int] | None:
    """(limit, used) of one group in bytes; page cache the kernel would give back does not count as used."""
    limit = read_text(folder / "memory.max") or read_text(folder / "memory.limit_in_bytes")
    if not limit.isdigit() or int(limit) >= _NO_LIMIT:
        return None
    used = read_text(folder / "memory.current") or read_text(folder / "memory.usage_in_bytes")
    cached = re.search(r"^(?:total_)?inactive_file (\d+)$", read_text(folder / "memory.stat"), re.MULTILINE)
    return int(limit), max(0, int(used or 0) - int(cached[1] if cached else 0))


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes this process's group may hold, or None where there is no limit."""
    return min((found[0] for found in map(_memory, _folders(root, "memory")) if found), default=None)


def memory_free(root: Path = Path("/")) -> int | None:
    """Bytes left until a limit is reached, or None where there is no limit."""
    return min((max(0, f[0] - f[1]) for f in map(_memory, _folders(root, "memory")) if f), default=None)
