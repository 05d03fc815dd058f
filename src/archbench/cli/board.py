"""The verbs that read results: ``board``, ``serve``, ``export``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from archbench.cli.console import RESULTS, SITE, Results, app, fail, out, report


class ExportFormat(StrEnum):
    json = "json"
    csv = "csv"
    md = "md"


@app.command()
def board(
    results: Results = RESULTS,
    folder: Annotated[Path, typer.Option("--out", help="Folder to render into.")] = SITE,
) -> None:
    """Render the leaderboard from result files alone."""
    from archbench.reports.load import NoResults
    from archbench.reports.site import RenderRefused, render

    try:
        rendered = render(results, folder)
    except (NoResults, RenderRefused) as error:
        fail(str(error))
    report(rendered.problems)
    out.print(f"{rendered.pages} pages, {rendered.rows} rows", highlight=False)
    out.print(str(rendered.index.resolve()), highlight=False, soft_wrap=True, markup=False)


@app.command()
def serve(
    folder: Annotated[Path, typer.Option("--site", help="The rendered folder.")] = SITE,
    port: Annotated[int, typer.Option("--port", help="Port on this machine only; 0 picks a free one.")] = 8000,
) -> None:
    """Preview the rendered leaderboard at a local address."""
    from archbench.reports.serve import serve as serve_site

    try:
        serve_site(folder, port)
    except (OSError, ValueError) as error:
        fail(str(error))


@app.command()
def export(
    format: Annotated[ExportFormat, typer.Option("--format", help="json, csv or md.")] = ExportFormat.json,
    results: Results = RESULTS,
) -> None:
    """Print the rows of the leaderboard; docs/export-format.md describes them."""
    from archbench.reports.export import export as export_rows
    from archbench.reports.load import NoResults

    try:
        text, problems = export_rows(results, format.value)
    except NoResults as error:
        fail(str(error))
    report(problems)
    sys.stdout.write(text)
