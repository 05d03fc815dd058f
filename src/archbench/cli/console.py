"""What every verb shares: the application, the two consoles, and how a verb ends badly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console

from archbench import __version__

if TYPE_CHECKING:
    from archbench.reports.load import Problem

app = typer.Typer(
    help="Which implementation of a neural-network building block is best, for this case, on this machine?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console()
err = Console(stderr=True)

Results = Annotated[Path, typer.Option("--results", help="Folder of results.", show_default=True)]
RESULTS = Path("reports/results")
SITE = Path("reports/site")


def fail(message: str, code: int = 2) -> NoReturn:
    """End with a sentence on stderr."""
    err.print(f"archbench: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def report(problems: Sequence[Problem]) -> None:
    """Name what did not count, on stderr."""
    for problem in problems:
        err.print(f"skipped {problem.path}: {problem.reason}", markup=False, highlight=False, soft_wrap=True)
    if problems:
        err.print(f"{len(problems)} file(s) or record(s) did not count", style="yellow")


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"archbench {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
