"""The command line: verbs that measure (``measuring.py``) and verbs that read results (``board.py``).

Exit codes: 0 done; 1 the command ran and found something wrong (a red gate, a run without results);
2 a mistake in the call (unknown names, no results, no repository), with a sentence on stderr that says what to do.
No verb has an option that changes a number: what changes a number is a case or a contender.
"""

from archbench.cli import agent, board, edge, measuring, vit
from archbench.cli.console import app

__all__ = ["agent", "app", "board", "edge", "main", "measuring", "vit"]


def main() -> None:
    """Entry point."""
    app()
