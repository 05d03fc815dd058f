"""A machine's branch, commit by commit: each adds the results of exactly one run and touches nothing else.

The tree of ``machine/<name>`` only grows: ``runs/<run>/benchmarks.json`` and, below ``runs/<run>/<name>/``, what asv
and the run left. A commit counts when it is signed by that machine, builds on the last one that counted, and its
difference to that one is a new folder of plain files with names, sizes and contents a results folder may hold.
Everything here is read from git's objects; nothing is checked out. Only the standard library is used: this file is part
of the ``pre-receive`` hook.

Source: the tree is archbench's own; the tricks it withstands are those of git's fsck and of CVE-2014-9390 (.git paths)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from archbench.hardware.agent.signed_commit import Refused, Signers, take_apart, verified_key
from archbench.hardware.agent.signed_git import EMPTY_TREE, Git
from archbench.names import is_safe_name, legible

BRANCHES = "refs/heads/machine/"
RUNS = "runs"
BENCHMARKS = "benchmarks.json"
CELLS = "cells"
MAX_FILE_BYTES = 16 << 20  # what the reader of results reads of a file
MAX_RUN_BYTES = 64 << 20
MAX_FILES = 1000
_PLAIN = "100644"
_MODES = {"120000": "is a symbolic link", "160000": "is a submodule", "100755": "is an executable file"}


@dataclass(frozen=True)
class Delivery:
    """One commit that counts: a run with its files, by their place in a results folder."""

    commit: str
    machine: str
    run: str
    key: str  # fingerprint; empty where the owner accepted a commit whose signature does not count
    files: Mapping[str, bytes]


def is_machine(name: str) -> bool:
    """Whether a machine's name can be the end of a branch's name, the principal of a key and a folder."""
    return is_safe_name(name) and " " not in name and not name.endswith(".lock")


def new_commits(git: Git, old: str | None, new: str) -> list[str]:
    """The commits of a branch behind ``old``, oldest first. Raises Refused for a history that was rewritten."""
    if old is not None and not git.is_ancestor(old, new):
        raise Refused(
            f"the history was rewritten: the last commit that counted, {old[:12]}, is not in it any more. Put it back "
            f"with: git push --force REMOTE {old}:BRANCH"
        )
    asked = ["rev-list", "--first-parent", "--reverse", new, *([f"^{old}"] if old is not None else [])]
    return git.text(*asked, timeout_s=600).split()


def known_files(git: Git, commit: str | None) -> set[str]:
    """Every path of a branch at a commit."""
    if commit is None:
        return set()
    listed = git("ls-tree", "-r", "-z", "--name-only", commit)
    return set(listed.decode("utf-8", "replace").split("\0")) - {""}


def examine(
    git: Git, machine: str, commit: str, parent: str | None, known: set[str], signers: Signers, *, trusted: bool = False
) -> Delivery:
    """What a commit delivers. Raises Refused, with the one reason that is most to the point.

    ``parent`` is the commit before it that counted and ``known`` that one's files; the new files are added to it.
    ``trusted``: its owner has looked at it, so the signature is not asked for.
    """
    parts = take_apart(git("cat-file", "commit", commit))
    if len(parts.parents) > 1:
        raise Refused(f"the commit has {len(parts.parents)} parents: a delivery builds on one")
    if parts.parents != ((parent,) if parent is not None else ()):
        raise Refused("the commit does not build on the last one that counted")
    key = "" if trusted else verified_key(git, commit, parts, machine, signers)
    blobs = _added(git, parent, commit, machine)
    (run,) = {path.split("/")[1] for path in blobs}
    if any(path.startswith(f"{RUNS}/{run}/") for path in known):
        raise Refused(f"adds to the run {run}, which was delivered before")
    held = {tuple(path.split("/")[2:]) for path in known if f"/{CELLS}/" in path}
    for path in blobs:
        if f"/{CELLS}/" in path and tuple(path.split("/")[2:]) in held:
            raise Refused(f"{_quoted(path)} would overwrite the result of an earlier delivery")
    if not any(f"/{CELLS}/" in path for path in blobs):
        raise Refused(f"the run {run} holds no run file")
    files = {}
    for path, content in _contents(git, blobs):
        reason = content_reason(path, content, machine)
        if reason:
            raise Refused(f"{_quoted(path)} {reason}")
        files[path.removeprefix(f"{RUNS}/{run}/")] = content
    known.update(blobs)
    return Delivery(commit, machine, run, key, files)


def path_reason(path: str, machine: str) -> str:
    """What is wrong with the place of a file in a branch, or nothing."""
    parts = path.split("/")
    odd = next((part for part in parts if not is_safe_name(part)), None)
    if odd is not None:
        return f"has the name {_quoted(odd)} in it, which is not a usable file name"
    if parts[0] != RUNS or len(parts) < 3:
        return f"lies outside {RUNS}/<run>/"
    if parts[2:] == [BENCHMARKS]:
        return ""
    if parts[2] != machine:
        return f"lies in the folder of {_quoted(parts[2])}, not of {machine!r}"
    of_asv = len(parts) == 4 and path.endswith(".json")
    of_ours = len(parts) == 5 and parts[3] == CELLS and path.endswith(".jsonl")
    return "" if of_asv or of_ours else "is no file of a results folder"


def content_reason(path: str, content: bytes, machine: str) -> str:
    """What is wrong with a file's content as far as the standard library can tell, or nothing."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"is not UTF-8: {error.reason} at byte {error.start}"
    lines = text.split("\n") if path.endswith(".jsonl") else [text]
    if len(lines) > 1 and lines.pop() != "":
        return "ends in the middle of a line"
    first = None
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            return f"is not JSON: line {number}: {error}"
        if not isinstance(found, dict):
            return f"is not JSON of the right kind: line {number} is no object"
        first = first or found
    if path.endswith(".jsonl") and (first is None or first.get("record") != "run" or first.get("machine") != machine):
        return f"does not begin with the header of a run on {machine!r}"
    return ""


def _added(git: Git, parent: str | None, commit: str, machine: str) -> dict[str, str]:
    """Path and blob of what a commit adds. Raises Refused where it does anything else."""
    listed = git("diff-tree", "-r", "--raw", "-z", "--no-renames", "--no-abbrev", parent or EMPTY_TREE, commit)
    fields = listed.split(b"\0")[:-1]
    if not fields:
        raise Refused("the commit is empty: it delivers no run")
    if len(fields) // 2 > MAX_FILES:
        raise Refused(f"the commit changes {len(fields) // 2} files, more than {MAX_FILES}")
    blobs = {}
    for entry, name in zip(fields[::2], fields[1::2], strict=True):
        _, mode, _, blob, status = entry.decode().lstrip(":").split(" ")
        try:
            path = name.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused(f"{_quoted(name.decode('utf-8', 'backslashreplace'))} has a name that is not UTF-8") from None
        what = {"D": "deletes", "M": "changes", "T": "changes the type of"}.get(status[0])
        if what is not None:
            raise Refused(f"{what} {_quoted(path)}, which was delivered before")
        reason = path_reason(path, machine) or ("" if mode == _PLAIN else _MODES.get(mode, f"has the mode {mode}"))
        if reason:
            raise Refused(f"{_quoted(path)} {reason}")
        blobs[path] = blob
    runs = sorted({path.split("/")[1] for path in blobs})
    if len(runs) > 1:
        raise Refused(f"the commit delivers {len(runs)} runs, not one: {', '.join(runs[:5])}")
    return blobs


def _contents(git: Git, blobs: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Each file's content. Raises Refused, before anything large is read, where there is too much of it."""
    asked = "".join(f"{blob}\n" for blob in blobs.values()).encode()
    sizes = git("cat-file", "--batch-check=%(objecttype) %(objectsize)", stdin=asked).decode().splitlines()
    total = 0
    for path, answer in zip(blobs, sizes, strict=True):
        kind, _, size = answer.partition(" ")
        if kind != "blob" or not size.isdigit():
            raise Refused(f"{_quoted(path)} is no file: git calls it {answer!r}")
        total += int(size)
        if int(size) > MAX_FILE_BYTES:
            raise Refused(f"{_quoted(path)} has {size} bytes, more than {MAX_FILE_BYTES}")
    if total > MAX_RUN_BYTES:
        raise Refused(f"the run has {total} bytes, more than {MAX_RUN_BYTES}")
    printed = git("cat-file", "--batch=%(objectsize)", stdin=asked)
    at = 0
    for path in blobs:
        start = printed.index(b"\n", at) + 1
        at = start + int(printed[at:start])
        yield path, printed[start:at]
        at += 1  # the line's end behind the content


def _quoted(text: str) -> str:
    """A name from outside, short and with nothing in it that hides."""
    return repr(legible(text[:120]))
