"""The signing key: made once, kept, and never quietly replaced."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from archbench.hardware.agent.keys import KeyFailed, ensure_key, read_key


def test_a_key_is_made_once_and_its_line_verifies_what_it_signs(tmp_path: Path) -> None:
    key = ensure_key(tmp_path / "key", "pi-5")
    assert ensure_key(tmp_path / "key", "pi-5") == key
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "key").iterdir()] == [key.path.name]
    (tmp_path / "allowed").write_text(key.allowed_signers_line + "\n")
    sign = ["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", str(key.path)]
    (tmp_path / "signature").write_bytes(subprocess.run(sign, input=b"x", capture_output=True, check=True).stdout)

    def verifies(machine: str, namespace: str) -> bool:
        asked = ["ssh-keygen", "-Y", "verify", "-f", str(tmp_path / "allowed"), "-I", machine, "-n", namespace]
        done = subprocess.run([*asked, "-s", str(tmp_path / "signature")], input=b"x", capture_output=True)
        return done.returncode == 0 and key.fingerprint.encode() in done.stdout

    assert verifies("pi-5", "git")
    assert not verifies("pi-4", "git")
    assert not verifies("pi-5", "file")  # the line is good for commits only


def test_two_at_once_end_with_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: ensure_key(tmp_path / "key", "pi-5"), range(4)))
    assert len({key.public for key in keys}) == 1
    assert len(list((tmp_path / "key").iterdir())) == 1


@pytest.mark.parametrize("machine", ["", "pi 5", "../pi", ".pi", "pi.lock", "a..b", "pi/5", 'pi"', "pi,other", "pi*"])
def test_a_name_that_is_no_branch_and_no_principal_gets_no_key(machine: str, tmp_path: Path) -> None:
    with pytest.raises(KeyFailed, match="cannot be the name of a branch"):
        ensure_key(tmp_path, machine)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_key_is_named_and_kept(tmp_path: Path) -> None:
    key = ensure_key(tmp_path, "pi-5")
    key.path.write_bytes(b"")  # what a power cut can leave of a file
    with pytest.raises(KeyFailed, match=r"cannot be used: .* give the owner the new line"):
        ensure_key(tmp_path, "pi-5")
    assert key.path.read_bytes() == b""


def test_a_missing_key_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(KeyFailed, match="'archbench agent init' makes one"):
        read_key(tmp_path / "id_ed25519", "pi-5")
