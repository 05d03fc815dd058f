"""The key that signs a machine's deliveries: made once, never sent anywhere.

An Ed25519 key of OpenSSH without a passphrase, because a board signs unattended; it is worth what the board's own
protection is worth, and it signs for one machine only. The owner of the publishing side is given one line of an
``allowed_signers`` file, with which ``collect`` and the remote's hook know the machine again.

Source: ssh-keygen(1), ALLOWED SIGNERS; git-config(1), gpg.ssh.allowedSignersFile
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from archbench.hardware.agent.signed_branch import is_machine

NAME = "id_ed25519"


class KeyFailed(ValueError):
    """There is no usable key; the message says what to do."""


@dataclass(frozen=True)
class Key:
    """A machine's signing key. ``public`` is its text, ``path`` the private file."""

    path: Path
    machine: str
    public: str  # "ssh-ed25519 AAAA..."
    fingerprint: str  # "SHA256:..."

    @property
    def allowed_signers_line(self) -> str:
        """What the owner adds to the allowed_signers file: this key signs git commits of this machine, nothing else."""
        return f'{self.machine} namespaces="git" {self.public}'


def ensure_key(folder: Path, machine: str) -> Key:
    """The key in a folder, which is made where there is none. Raises KeyFailed, OSError.

    Two calls at once end with one key. A key that is there but cannot be read is never replaced: the owner knows the
    machine by it.
    """
    if not is_machine(machine):
        raise KeyFailed(f"{machine!r} cannot be the name of a branch: letters, digits and . _ + - only")
    path = folder / NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(prefix=".key-", dir=folder) as staging:
            made = Path(staging) / NAME
            _keygen("-q", "-t", "ed25519", "-N", "", "-C", machine, "-f", str(made))
            see_to_disk(made)
            with contextlib.suppress(FileExistsError):
                os.link(made, path)  # unlike a rename it never takes another's place
        see_to_disk(folder)
    return read_key(path, machine)


def read_key(path: Path, machine: str) -> Key:
    """The key in a private file. Raises KeyFailed."""
    if not path.is_file():
        raise KeyFailed(f"there is no key {path}: 'archbench agent init' makes one")
    try:
        public = " ".join(_keygen("-y", "-P", "", "-f", str(path)).split()[:2])
        fingerprint = _keygen("-l", "-f", "-", stdin=public + "\n").split()[1]
    except KeyFailed as error:
        raise KeyFailed(
            f"the key {path} cannot be used: {error}. If it is lost, remove it, run 'archbench agent init' and give "
            "the owner the new line"
        ) from error
    return Key(path, machine, public, fingerprint)


def _keygen(*arguments: str, stdin: str = "") -> str:
    if shutil.which("ssh-keygen") is None:
        raise KeyFailed("ssh-keygen is not installed (Debian: apt-get install openssh-client)")
    done = subprocess.run(["ssh-keygen", *arguments], input=stdin, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise KeyFailed(" ".join(done.stderr.split())[:300] or f"ssh-keygen ended with {done.returncode}")
    return done.stdout


def see_to_disk(path: Path) -> None:
    """Return when a file's content, or a folder's list of names, would survive a power cut. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
