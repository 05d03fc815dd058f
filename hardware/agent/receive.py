"""The ``pre-receive`` hook of the repository that machines push to: what does not count is refused at the door.

The hook is one file of plain Python made of the modules that ``collect`` verifies with, so that both refuse the same
commits in the same words; it needs git, ssh-keygen and Python's standard library. ``signed_hook`` puts it in place.

Source: githooks(5), pre-receive; git-receive-pack(1), QUARANTINE ENVIRONMENT
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from archbench.hardware.agent.signed_branch import BRANCHES, examine, is_machine, known_files, new_commits
from archbench.hardware.agent.signed_commit import Refused, Signers, git_for
from archbench.hardware.agent.signed_git import Git, GitFailed, require_git

ALLOWED = "archbench.allowedSigners"  # in the repository's configuration; a file of that name lies beside it otherwise
REVOKED = "archbench.revokedKeys"
NOTHING = "0" * 40
STALE_S = 3600.0  # a branch's lock is held for milliseconds: an older one is of a receiver that was killed


def judge(updates: Iterable[str], repository: Path) -> list[str]:
    """The reasons against a push, as ``pre-receive`` is told of it: a line ``old new ref`` each. None: it may come."""
    try:
        require_git()
        signers = _signers(Git(repository, inherit=True))
    except (GitFailed, Refused) as error:
        return [str(error)]
    git = git_for(signers, repository, inherit=True)
    reasons = []
    for update in updates:
        old, new, ref = update.rstrip("\n").split(" ", 2)
        try:
            _judge_branch(git, None if old == NOTHING else old, new, ref, signers)
        except Refused as refused:
            reasons.append(f"{ref.removeprefix('refs/heads/')[:200]!r}: {refused}")
        except GitFailed as failed:
            reasons.append(f"{ref.removeprefix('refs/heads/')[:200]!r}: cannot be checked: {failed}")
    return reasons


def _judge_branch(git: Git, old: str | None, new: str, ref: str, signers: Signers) -> None:
    machine = ref.removeprefix(BRANCHES)
    if not ref.startswith(BRANCHES) or not is_machine(machine):
        raise Refused("only branches machine/<name> are taken here, with a name a machine can have")
    if new == NOTHING:
        raise Refused("a machine's branch is never deleted")
    lock = git.repository / f"{ref}.lock"
    with contextlib.suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > STALE_S:
            lock.unlink()
    known = known_files(git, old)
    for commit in new_commits(git, old, new):
        try:
            examine(git, machine, commit, old, known, signers)
        except Refused as refused:
            raise Refused(f"commit {commit[:12]}: {refused}") from None
        old = commit


def _signers(git: Git) -> Signers:
    """Raises Refused where nobody said who may sign, GitFailed."""
    here = Path(git.text("rev-parse", "--absolute-git-dir"))
    found = []
    for setting, name in ((ALLOWED, "allowed_signers"), (REVOKED, "revoked_keys")):
        asked = git.ask("config", "--type=path", "--get", setting)
        told = asked.stdout.decode().strip()
        found.append((here / told, True) if told else (here / name, False))
    (allowed, _), (revoked, must_be) = found
    if not allowed.is_file():
        raise Refused(f"nobody may sign: there is no {allowed}")
    if must_be and not revoked.is_file():
        raise Refused(f"{REVOKED} names {revoked}, which is not there")
    return Signers(allowed, revoked if revoked.is_file() else None)


def main() -> int:
    """The hook: reads the updates from standard input, says why not, and ends with 1 where one may not come."""
    reasons = judge(sys.stdin.readlines(), Path(os.environ.get("GIT_DIR", ".")))
    for reason in reasons:
        print(f"archbench: refused {reason}", file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
