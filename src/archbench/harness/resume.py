"""A run that was cut off goes on where it stopped, in the folder it works in.

Its file is the only witness: cells that are in it are not measured again. A cell that was begun when the power went is
measured once more; one that was begun twice and never ended is left as crashed, because a cell that takes the machine
down would do so for ever. A header names commit, machine and versions for all of the file's cells, so a file goes on
only where all of them are the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from archbench.atomic import write_atomically
from archbench.cells import Run, decode

LIVES = 2  # how often a cell may be begun
CUT_OFF_TWICE = "the run was cut off twice while it was measured: by the cell, by a kill or by a loss of power"
_MARK = ".archbench-run"


def claim(folder: Path, file: Path) -> None:
    """Make ``folder`` a run's own: what an earlier sitting left is removed, but for the run's ``file``.

    Raises ValueError for a folder that holds something else, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / _MARK).exists():
        if any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and not the folder of a run: name another with --keep-in")
        write_atomically(folder / _MARK, b"")
    for path in folder.iterdir():
        if path.name not in (_MARK, file.name):
            remove(path)
    mend(file)


def release(folder: Path) -> None:
    """Remove a run's folder when its results are where they belong; killed half-way, it is no run any more."""
    gone = folder.with_name(f".{folder.name}.done")
    remove(gone)
    os.replace(folder, gone)
    remove(gone)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that is in it; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def mend(file: Path) -> None:
    """Cut a run file before the first line that is none: half of one, or blocks a loss of power left unwritten."""
    if not file.exists():
        return
    with file.open("r+b") as opened:
        end = 0
        for line in opened:
            if not line.endswith(b"\n") or not _is_record(line):
                opened.truncate(end)
                os.fsync(opened.fileno())
                return
            end += len(line)


def _is_record(line: bytes) -> bool:
    try:
        decode(line)
    except msgspec.DecodeError:
        return False
    return True


def continued(file: Path, machine: str, commit: str, dirty: bool, versions: Mapping[str, str]) -> Run | None:
    """The header of a run that goes on here, or None for one that begins.

    The file is mended by then. Raises ValueError where its rows would name what was not measured.
    """
    if not file.exists() or not file.stat().st_size:
        return None
    with file.open("rb") as opened:
        header = decode(opened.readline())
    if not isinstance(header, Run):
        raise ValueError(f"{file} is not the file of a run: it has no header")
    changed = [f"commit {header.commit[:12]}, not {commit[:12]}"] if header.commit != commit else []
    changed += [f"machine {header.machine}, not {machine}"] if header.machine != machine else []
    changed += ["a work tree that differs from its commit"] if header.dirty or dirty else []
    changed += [
        f"{name} {header.versions.get(name, 'absent')}, not {versions.get(name, 'absent')}"
        for name in sorted({*header.versions, *versions})
        if header.versions.get(name) != versions.get(name)
    ]
    if changed:
        raise ValueError(
            f"the run in {file.parent} cannot go on here: it was begun with {'; '.join(changed)}. "
            "Go back to that, or remove the folder to begin anew"
        )
    return header
