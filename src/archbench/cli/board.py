"""The verbs that read results: ``board``, ``serve``, ``export``, ``validate``, ``merge``, ``import``."""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from archbench.cli.console import RESULTS, SITE, Results, app, err, fail, from_checkout, on_one_line, out, report
from archbench.names import is_safe_name

Into = Annotated[
    Path,
    typer.Option("--into", help="Results folder to write into; made where there is none.", callback=from_checkout),
]


class ExportFormat(StrEnum):
    json = "json"
    csv = "csv"
    md = "md"
    parquet = "parquet"


class VerdictFormat(StrEnum):
    text = "text"
    json = "json"


class ImportFormat(StrEnum):
    llama_bench = "llama-bench"
    pytest_benchmark = "pytest-benchmark"
    published = "published"
    asv = "asv"


@app.command()
def board(
    results: Results = RESULTS,
    folder: Annotated[Path, typer.Option("--out", help="Folder to render into.", callback=from_checkout)] = SITE,
    watch: Annotated[bool, typer.Option("--watch", help="Render again whenever the results change.")] = False,
    address: Annotated[str, typer.Option("--address", help="Where it will be published: for feed and card.")] = "",
) -> None:
    """Render the leaderboard from result files alone."""
    from archbench.reports.load import NoResults
    from archbench.reports.site import RenderRefused
    from archbench.reports.watch import changes

    if Path.cwd().is_relative_to(folder.resolve()):  # a render swaps the folder for a new one
        fail(f"{folder} is the folder you are in, or above it: name one of its own with --out")
    if not watch:
        try:
            _render(results, folder, address)
        except (NoResults, RenderRefused, OSError) as error:  # a full disk leaves the old board
            fail(str(error))
        return
    try:
        for _ in changes(results, threading.Event()):
            try:
                _render(results, folder, address)
            except NoResults as error:  # they may come
                err.print(f"waiting: {error}", markup=False, highlight=False, soft_wrap=True)
    except (RenderRefused, OSError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        return


def _render(results: Path, folder: Path, address: str) -> None:
    from archbench.reports.site import render

    address = address and address.rstrip("/") + "/"
    rendered = render(results, folder, here=_this_machine(results), address=address)
    report(rendered.problems)
    out.print(f"{rendered.pages} pages, {rendered.rows} row{'s' * (rendered.rows != 1)}", highlight=False)
    out.print(str(rendered.index.resolve()), highlight=False, soft_wrap=True, markup=False)


def _this_machine(results: Path) -> str | None:
    """This machine's name where it has results: its rows come first."""
    if not any(results.glob("*/cells")):
        return None
    from archbench.hardware.detect import default_device, detect, machine_name

    try:
        host = detect()
        return machine_name(host, default_device(host))
    except ValueError:  # a device that is asked for and not there: it has no results either
        return None


@app.command()
def serve(
    folder: Annotated[Path, typer.Option("--site", help="The rendered folder.", callback=from_checkout)] = SITE,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port on this machine only; 0 picks a free one.")
    ] = 8000,
) -> None:
    """Preview the rendered leaderboard at a local address; pages reload when it is rendered again."""
    from archbench.reports.serve import serve as serve_site

    try:
        serve_site(folder, port)
    except (OSError, ValueError) as error:
        fail(str(error))


@app.command()
def export(
    format: Annotated[ExportFormat, typer.Option("--format", help="json, csv, md or parquet.")] = ExportFormat.json,
    results: Results = RESULTS,
    file: Annotated[Path | None, typer.Option("--out", help="File to write instead of printing.")] = None,
) -> None:
    """Print or write the rows of the leaderboard; docs/export-format.md describes them."""
    from archbench.atomic import write_atomically
    from archbench.reports.export import FORMATS
    from archbench.reports.load import NoResults
    from archbench.reports.parquet import NoPyarrow, as_parquet
    from archbench.reports.rows import load

    if format is ExportFormat.parquet and file is None:
        fail("Parquet is not for a terminal: name a file with --out")
    try:
        found = load(results)
        content = as_parquet(found) if format is ExportFormat.parquet else FORMATS[format.value](found).encode()
        if file is not None:
            write_atomically(file, content)
    except (NoResults, NoPyarrow, OSError) as error:
        fail(str(error))
    report(found.problems)
    if file is None:
        sys.stdout.write(content.decode())


@app.command()
def validate(
    results: Annotated[Path, typer.Argument(help="Folder of results.", callback=from_checkout)] = RESULTS,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 when anything is quarantined.")] = False,
    repository: Annotated[
        Path | None, typer.Option("--repository", help="Commits must be in the history of this git repository.")
    ] = None,
    format: Annotated[VerdictFormat, typer.Option("--format", help="text or json.")] = VerdictFormat.text,
) -> None:
    """Judge result files before they are delivered or published.

    Exit 0: usable. 1: something is quarantined, with --strict. 2: nothing usable.
    """
    from archbench.reports.load import NoResults
    from archbench.reports.validate import validate as judge

    try:
        verdict = judge(results, now=datetime.now(UTC), repository=repository)
    except (NoResults, ValueError) as error:
        fail(str(error))
    if format is VerdictFormat.json:
        print(json.dumps(verdict.as_dict(), indent=1, allow_nan=False))
    else:
        for problem in verdict.quarantined:
            print(on_one_line(problem))
        print(f"{verdict.files} files, {verdict.rows} rows, {len(verdict.quarantined)} quarantined")
    if not verdict.usable:
        err.print(f"archbench: nothing usable in {results}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(verdict.exit_code(strict=strict))


@app.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(help="Results folders to join.", show_default=False)],
    into: Into = RESULTS,
) -> None:
    """Join results folders; any order gives the same folder, nothing is deleted."""
    from archbench.reports.load import NoResults
    from archbench.reports.merge import Conflict
    from archbench.reports.merge import merge as join

    try:
        done = join(folders, into)
    except (NoResults, Conflict, OSError) as error:
        fail(str(error))
    report(done.problems)
    out.print(f"{len(done.written)} files written, {done.unchanged} unchanged", highlight=False)


@app.command("import")
def import_results(
    format: Annotated[
        ImportFormat, typer.Argument(help="llama-bench, pytest-benchmark, published or asv.", show_default=False)
    ],
    files: Annotated[list[Path], typer.Argument(help="Files of that tool; for asv, results folders.")],
    machine: Annotated[str, typer.Option("--machine", help="Name of the machine they were measured on.")] = "",
    into: Into = RESULTS,
) -> None:
    """Take in results of other tools; the board shows them beside the rest, unranked."""
    from archbench.reports.imports import import_file

    if format is ImportFormat.asv:
        if machine:
            fail("asv's results name their machines: leave --machine out")
        return merge(files, into)
    if not is_safe_name(machine):
        fail(f"{machine!r} cannot be a machine name: name one with --machine, of letters, digits and . _ + -")
    try:
        for file in files:
            out.print(
                str(import_file(format.value, file, machine, into)), highlight=False, soft_wrap=True, markup=False
            )
    except (ValueError, OSError) as error:
        fail(str(error))
