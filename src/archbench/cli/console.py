"""What every verb shares: the application, the two consoles, and how a verb ends badly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from archbench import __version__
from archbench.names import legible

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

RESULTS = Path("reports/results")
SITE = Path("reports/site")


def from_checkout(given: Path) -> Path:
    """A default folder, meant from the top of the checkout one is in; any other folder as it was given."""
    if given in (RESULTS, SITE):
        here = Path.cwd()
        for folder in (here, *here.parents):
            if (folder / "asv.conf.json").is_file():
                return given if folder == here else folder / given
    return given


Results = Annotated[
    Path, typer.Option("--results", help="Folder of results.", show_default=True, callback=from_checkout)
]


def fail(message: str, code: int = 2) -> NoReturn:
    """End with a sentence on stderr."""
    err.print(legible(f"archbench: {message}"), style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def plain(foreign: str) -> Text:
    """Text of a contender, a file or a library for a table: no markup, nothing that steers a terminal."""
    return Text(legible(foreign))


def on_one_line(problem: Problem) -> str:
    """Path and reason; a line end in either would look like one problem more."""
    return f"{problem.path}: {problem.reason}".replace("\n", "\\n").replace("\t", "\\t")


def report(problems: Sequence[Problem]) -> None:
    """Name what did not count, on stderr."""
    for problem in problems:
        err.print(f"skipped {on_one_line(problem)}", markup=False, highlight=False, soft_wrap=True)
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
