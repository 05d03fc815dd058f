"""Proofs: which run files came in a commit that their machine signed, as ``archbench agent collect`` found it.

``<machine>/verified.jsonl`` holds a line for each such run file: its digest, the commit, whose key signed it and when
that was checked. The reader compares the digest, so a run file that was changed afterwards loses its mark and is named.
It cannot check the signature again, because it reads files alone: a proof is worth as much as the results folder it
lies in, and whoever doubts it verifies the commit it names.

Source: docs/collecting.md
"""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from archbench.names import is_safe_name
from archbench.reports.load import Files, Problem, Unreadable, read_bytes, relative
from archbench.reports.meaning import date

MAX_PROOFS = 200_000
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KEY = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_FILE = re.compile(r"cells/[^/]+\.jsonl")


class Proof(msgspec.Struct, frozen=True, tag_field="record", tag="proof", forbid_unknown_fields=True):
    """A run file that came in a signed commit. ``file`` is relative to the machine's folder."""

    collected: str  # UTC, ISO 8601: when the signature was checked
    commit: str  # of the branch machine/<signer>
    file: str
    key: str  # fingerprint of the key that signed
    sha256: str  # of the run file
    signer: str  # the machine

    @property
    def words(self) -> str:
        return f"signed by {self.signer}"

    def as_dict(self) -> dict[str, str]:
        """What an export says of a row that it verifies."""
        return {"signer": self.signer, "key": self.key, "commit": self.commit, "collected": self.collected}


def read_proofs(path: Path, machine: str) -> list[Proof]:
    """The proofs of a machine. Raises Unreadable for a file in which any line is none: nobody edits it by hand."""
    lines = read_bytes(path).splitlines()
    if len(lines) > MAX_PROOFS:
        raise Unreadable(f"{len(lines)} lines, more than {MAX_PROOFS}")
    return [_proof(number, line, machine) for number, line in enumerate(lines, start=1)]


def _proof(number: int, line: bytes, machine: str) -> Proof:
    try:
        proof = msgspec.json.decode(line, type=Proof)
        date(proof.collected, "collected")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise Unreadable(f"line {number} is no proof: {error}") from error
    rules = ((_DIGEST, proof.sha256), (_COMMIT, proof.commit), (_KEY, proof.key), (_FILE, proof.file))
    if not all(rule.fullmatch(text) for rule, text in rules) or not is_safe_name(proof.file.partition("/")[2]):
        raise Unreadable(f"line {number} is no proof: a digest, a commit, a key or a file name is not one")
    if proof.signer != machine:
        raise Unreadable(f"line {number} is signed by {proof.signer[:60]!r} and lies in the folder of {machine!r}")
    return proof


class Proofs:
    """All proofs of a results folder; a file that holds something else becomes one of its problems."""

    def __init__(self, files: Files, folder: Path) -> None:
        self._held: dict[tuple[str, str], list[Proof]] = {}
        for machine, path in files.proofs:
            try:
                for proof in read_proofs(path, machine):
                    self._held.setdefault((machine, proof.file), []).append(proof)
            except Unreadable as error:
                files.problems.append(Problem(relative(path, folder), str(error)))

    def of(self, machine: str, file: str, sha256: str) -> Proof | None:
        """The earliest proof of a run file with this content. Raises Unreadable where there are only other contents."""
        found = self._held.get((machine, file), [])
        same = [proof for proof in found if proof.sha256 == sha256]
        if found and not same:
            raise Unreadable(
                f"is not what commit {found[0].commit[:12]} delivered under its machine's signature: it was changed "
                "afterwards, and counts as not verified"
            )
        return min(same, key=lambda proof: (date(proof.collected, "collected"), proof.commit), default=None)


def joined(a: bytes, b: bytes) -> bytes:
    """The union of two files' proofs; one commit's proof of a file is kept once, with the earlier date."""
    kept: dict[tuple[str, str, str], Proof] = {}
    for proof in (msgspec.json.decode(line, type=Proof) for content in (a, b) for line in content.splitlines()):
        key = (proof.file, proof.sha256, proof.commit)
        kept[key] = min(proof, kept.get(key, proof), key=msgspec.json.encode)
    return b"".join(msgspec.json.encode(proof) + b"\n" for proof in sorted(kept.values(), key=msgspec.json.encode))
