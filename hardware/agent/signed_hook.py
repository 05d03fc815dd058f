"""Putting the ``pre-receive`` hook into a repository, with git's own checks switched on.

The hook's text is made of the modules that ``collect`` verifies with: one file of plain Python that an owner can read,
and that runs where nothing of this project is installed. ``python -m archbench.hardware.agent.signed_hook REPOSITORY
ALLOWED_SIGNERS`` does it; doing it again brings the hook up to date.

Source: githooks(5), pre-receive; git-config(1), receive.*
"""

from __future__ import annotations

import ast
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from archbench import names
from archbench.hardware.agent import receive, signed_branch, signed_commit, signed_git
from archbench.hardware.agent.signed_git import Git, GitFailed, require_git

MODULES = (names, signed_git, signed_commit, signed_branch, receive)  # each needs those before it
MARK = "archbench"  # every hook of ours holds it
# git's own protection: broken objects, .git paths, packs that are too large, and branches that go back.
SETTINGS = {
    "receive.fsckObjects": "true",
    "receive.denyDeletes": "true",
    "receive.denyNonFastForwards": "true",
    "receive.maxInputSize": str(256 << 20),
}


def text() -> str:
    """The hook as one file."""
    sources = [Path(module.__file__ or "").read_text(encoding="utf-8") for module in MODULES]
    return "#!/usr/bin/env python3\nfrom __future__ import annotations\n\n" + "\n\n".join(map(_own_part, sources))


def _own_part(source: str) -> str:
    """A module without its imports of the project and of ``__future__``."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("__future__", "archbench"):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "\n".join(lines).strip() + "\n"


def install(repository: Path, allowed: Path) -> Path:
    """Put the hook into a bare repository that is there. Raises ValueError, OSError.

    ``allowed`` is the allowed_signers file, which the owner may go on editing: the hook reads it at every push.
    """
    hook = repository / "hooks" / "pre-receive"
    if hook.exists() and MARK not in hook.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{hook} is another hook: call this one from it, or move it away")
    if not allowed.is_file():
        raise ValueError(
            f"there is no {allowed}: it holds, for each machine, the line that 'archbench agent init' prints"
        )
    try:
        require_git()
        git = Git(repository)
        if git.text("rev-parse", "--is-bare-repository") != "true":
            raise ValueError(f"{repository} is not bare: make the remote with git init --bare")
        for name, value in {**SETTINGS, receive.ALLOWED: str(allowed.resolve())}.items():
            git("config", name, value)
    except GitFailed as error:
        raise ValueError(f"{repository}: {error}") from error
    hook.parent.mkdir(exist_ok=True)
    staged = hook.with_name(f".{hook.name}.{secrets.token_hex(4)}")
    try:
        staged.write_text(text(), encoding="utf-8")
        staged.chmod(0o755)
        os.replace(staged, hook)
    finally:
        staged.unlink(missing_ok=True)
    return hook


def main(arguments: Sequence[str]) -> int:
    """The command line: 0 the hook is in place, 2 it is not."""
    if len(arguments) != 2:
        print("usage: python -m archbench.hardware.agent.signed_hook REPOSITORY ALLOWED_SIGNERS", file=sys.stderr)
        return 2
    try:
        print(install(Path(arguments[0]), Path(arguments[1])))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
