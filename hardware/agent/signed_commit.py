"""A commit's signature: whose key made it, and if it does not count, why not.

A signature counts where three agree: the commit is spelt as git spells one (so that nothing in it is read twice),
``ssh-keygen`` finds the signature good *now* for the machine whose branch it is on, and git itself calls it ``G`` with
that machine as the signer. "Now" is the moment of receiving: the date in a commit is written by whoever holds the key,
so a key that has expired could date its commits back. Only the standard library is used: this file is part of the
``pre-receive`` hook.

Source: git's gpg.format=ssh; ssh-keygen(1), ALLOWED SIGNERS
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from archbench.hardware.agent.signed_git import Git

MAX_COMMIT_BYTES = 64 << 10
_PERSON = rb"[^\n<>]* <[^\n<>]*> \d{1,12} [+-]\d{4}\n"
_COMMIT = re.compile(
    rb"(?P<tree>tree [0-9a-f]{40}\n)(?P<parents>(?:parent [0-9a-f]{40}\n)*)"
    rb"(?P<people>author " + _PERSON + rb"committer " + _PERSON + rb")"
    rb"(?:gpgsig (?P<signature>[^\n]*\n(?: [^\n]*\n)*))?(?P<message>\n.*)",
    re.DOTALL,
)
_GOOD = re.compile(rb'Good "git" signature .*?with \S+ key (SHA256:\S+)')


class Refused(Exception):
    """A commit that does not count. ``by_signature`` is for who made it, not for what is in it."""

    def __init__(self, reason: str, *, by_signature: bool = False) -> None:
        super().__init__(reason)
        self.by_signature = by_signature


@dataclass(frozen=True)
class Signers:
    """Who may sign: ssh-keygen's ``allowed_signers`` file, and the keys that were revoked."""

    allowed: Path
    revoked: Path | None = None

    @property
    def revocation(self) -> list[str]:
        return ["-r", str(self.revoked)] if self.revoked is not None else []

    def config(self) -> dict[str, str]:
        """What git has to be told of them."""
        found = {"gpg.format": "ssh", "gpg.ssh.allowedSignersFile": str(self.allowed)}
        return found | ({"gpg.ssh.revocationFile": str(self.revoked)} if self.revoked is not None else {})


@dataclass(frozen=True)
class Parts:
    """A commit, taken apart."""

    parents: tuple[str, ...]
    signature: bytes  # empty: not signed
    payload: bytes  # what was signed


def take_apart(content: bytes) -> Parts:
    """Raises Refused for a commit that is not spelt as ``git commit-tree -S`` spells it."""
    match = _COMMIT.fullmatch(content)
    if len(content) > MAX_COMMIT_BYTES or match is None:
        raise Refused("the commit has headers a delivery does not have, or is too long")
    parents = tuple(line.split()[1].decode() for line in match["parents"].splitlines())
    signature = (match["signature"] or b"").replace(b"\n ", b"\n")
    return Parts(parents, signature, match["tree"] + match["parents"] + match["people"] + match["message"])


def verified_key(git: Git, commit: str, parts: Parts, machine: str, signers: Signers) -> str:
    """The fingerprint of the machine's key that signed a commit. Raises Refused with the reason by name."""
    if not parts.signature:
        raise Refused("the commit is not signed", by_signature=True)
    if not parts.signature.startswith(b"-----BEGIN SSH SIGNATURE-----\n"):
        raise Refused("the commit is signed, but not with an SSH key", by_signature=True)
    with tempfile.TemporaryDirectory(prefix="archbench-signature-") as folder:
        file = Path(folder) / "signature"
        file.write_bytes(parts.signature)
        asked = ["-Y", "verify", "-n", "git", "-f", str(signers.allowed), "-I", machine, "-s", str(file)]
        done = _keygen([*asked, *signers.revocation], parts.payload)
        found = _GOOD.match(done.stdout)
        if done.returncode or found is None:
            raise Refused(_why_not(file, asked, parts.payload, machine, signers), by_signature=True)
    key = found[1].decode()
    said = git("log", "-1", "--no-show-signature", "--format=%G?%n%GS%n%GF", commit)
    verdict, signer, fingerprint = said.decode("utf-8", "replace").split("\n")[:3]
    if verdict != "G":
        raise Refused(
            f"git calls the signature {verdict!r}, not 'G': its key was not valid at the date of the commit, or git "
            "reads other signers",
            by_signature=True,
        )
    if signer != machine or fingerprint != key:
        raise Refused(
            f"allowed_signers gives the key to {signer[:60]!r}; a line of its own must give it to {machine!r}",
            by_signature=True,
        )
    return key


def git_for(signers: Signers, repository: Path, *, inherit: bool = False) -> Git:
    """A repository whose ``%G?`` knows these signers."""
    return Git(repository, signers.config(), inherit=inherit)


def _keygen(arguments: list[str], payload: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["ssh-keygen", *arguments], input=payload, capture_output=True, timeout=60)
    except FileNotFoundError as error:
        raise Refused("ssh-keygen is not installed here, so no signature can be checked", by_signature=True) from error


def _why_not(file: Path, asked: list[str], payload: bytes, machine: str, signers: Signers) -> str:
    """The name of what is wrong with a signature ``ssh-keygen`` refused; the refusal itself stands already."""
    plain = _keygen(["-Y", "check-novalidate", "-n", "git", "-s", str(file)], payload)
    found = _GOOD.match(plain.stdout)
    if plain.returncode or found is None:
        return "the signature is forged or broken: it does not fit what the commit holds"
    key = found[1].decode()
    if signers.revoked is not None and _keygen(asked, payload).returncode == 0:
        return f"the key {key} was revoked"
    named = [(principals, options) for principals, options, own in _lines(signers.allowed) if own == key]
    if not named:
        return f"signed by the key {key}, which is nobody's in allowed_signers"
    for principals, options in named:
        if machine in principals.split(","):
            limits = re.findall(r'valid-(?:after|before)="?[0-9Z]+"?', options)
            return f"the key {key} is not valid today: {', '.join(limits) or options or 'see allowed_signers'}"
    return f"signed by the key of {named[0][0]}, on the branch of {machine}"


def _lines(allowed: Path) -> Iterator[tuple[str, str, str]]:
    """Principals, options and the key's fingerprint of each line that can be told apart, to name reasons by."""
    for line in allowed.read_text(encoding="utf-8", errors="replace").splitlines():
        match = re.match(r'\s*("[^"]+"|[^\s"#]\S*)\s+(.*?)\s*((?:sk-)?(?:ssh|ecdsa)-\S+) ([A-Za-z0-9+/=]+)', line)
        if match is not None:
            try:
                held = base64.b64decode(match[4], validate=True)
            except binascii.Error:
                continue
            digest = base64.b64encode(hashlib.sha256(held).digest()).decode().rstrip("=")
            yield match[1].strip('"'), match[2], f"SHA256:{digest}"
