"""A file is replaced whole or not at all, and nothing of a failed or killed writer stays where the next one works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from archbench.atomic import replacing, write_atomically


def test_a_file_is_written_into_folders_that_are_made(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file", b"one")
    write_atomically(tmp_path / "a" / "b" / "file", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "a" / "b").iterdir()] == [("file", b"two")]


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_whatever_fails_the_old_file_stays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    place = {"write": "archbench.atomic.Path.write_bytes"}.get(step, f"archbench.atomic.os.{step}")
    monkeypatch.setattr(place, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"old")]


def test_a_mark_lets_the_next_writer_clear_away_what_a_killed_one_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from archbench.atomic import replacing\n"
        "with replacing(Path(sys.argv[1]), 'new') as staged:\n"
        "    staged.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    target = tmp_path / "file"
    done = subprocess.run([sys.executable, "-c", code, str(target)], env=os.environ)
    assert done.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == [".file.new"]
    with replacing(target, "new") as staged:
        staged.write_bytes(b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"whole")]
