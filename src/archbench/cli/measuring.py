"""The verbs that look at this machine and measure on it: ``list``, ``check``, ``machine``, ``run``."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from archbench.cli.console import app, err, fail, out, plain
from archbench.discovery import UnknownName, load_track, select, track_modules
from archbench.names import legible

if TYPE_CHECKING:
    from archbench.cells import Cell

Targets = Annotated[
    list[str] | None, typer.Argument(help="TRACK or TRACK/CONTENDER; everything when left out.", show_default=False)
]

WAITING = "waiting: another archbench run is measuring on this machine"
NOT_READY = "this machine is not ready to measure; --force measures all the same, and every row says so"
NOT_SEEN = "asv's processes did not find it (a package that is not installed for them?) or ended before it was asked"
NOTHING_KEPT = "interrupted before a cell was finished: nothing is kept"


class ListFormat(StrEnum):
    table = "table"
    json = "json"


def _inventory() -> list[dict[str, Any]]:
    """What ``archbench list`` shows: tracks with their cases and each contender's status on this machine."""
    from archbench.hardware.detect import default_device, detect, place
    from archbench.harness.measure import availability
    from archbench.harness.survey import describe

    host = detect()
    where = place(host, default_device(host))
    tracks = []
    for name in track_modules():
        track = load_track(name)
        contenders = []
        for contender, found in describe(name).items():
            status, reason = availability(found, where)
            entry = {"contender": contender, "status": status, "reason": reason, "source": found.module}
            contenders.append(entry | {"summary": found.note.summary})
        tracks.append(
            {
                "track": name,
                "question": track.question,
                "baseline": track.baseline,
                "cases": [case.slug for case in track.bench_cases],
                "contenders": contenders,
            }
        )
    return tracks


@app.command("list")
def list_tracks(
    format: Annotated[ListFormat, typer.Option("--format", help="How to print it.")] = ListFormat.table,
) -> None:
    """Show the tracks, their cases and their contenders, and which of them can run here."""
    try:
        tracks = _inventory()
    except ValueError as error:
        fail(str(error))
    if format is ListFormat.json:
        for track in tracks:
            for contender in track["contenders"]:
                del contender["summary"]
        print(json.dumps({"tracks": tracks}, indent=1, allow_nan=False))
        return
    for track in tracks:
        table = Table(title=plain(f"{track['track']}: {track['question']}"), title_justify="left")
        caption = f"{len(track['cases'])} cases, for example {track['cases'][0]}; baseline {track['baseline']}"
        table.caption, table.caption_justify = plain(caption), "left"
        for column in ("contender", "here", "what it is"):
            table.add_column(column, overflow="fold")
        for entry in track["contenders"]:
            state = "ok" if entry["status"] == "ok" else f"{entry['status']}: {entry['reason']}"
            table.add_row(*map(plain, (entry["contender"], state, entry["summary"])))
        out.print(table)


@app.command()
def check(targets: Targets = None) -> None:
    """Ask every contender the test cases, without timing anything. Exit 1 when an answer is wrong."""
    from archbench.harness.front import checks

    try:
        chosen = select(tuple(targets or ()))
    except UnknownName as error:
        fail(str(error))
    wrong = 0
    for track, names in chosen.items():
        table = Table(title=plain(f"{track}: the gate at every test case"), title_justify="left")
        for column in ("contender", "right", "unsupported", "otherwise"):
            table.add_column(column, overflow="fold")
        with err.status(plain(f"checking {track}")):
            try:
                for name, verdicts in checks(track, names):
                    bad = [v for v in verdicts if v.status not in ("ok", "unsupported")]
                    wrong += len(bad)
                    skipped = [v for v in verdicts if v.status == "unsupported"]
                    note = f"{len(skipped)} ({skipped[0].reason})" if skipped else "0"
                    right = f"{sum(v.status == 'ok' for v in verdicts)} of {len(verdicts)}"
                    otherwise = "\n".join(f"{v.case}: {v.status}: {v.reason}" for v in bad)
                    table.add_row(*map(plain, (name, right, note, otherwise)), style="red" if bad else None)
            except ValueError as error:  # a device that is not there
                fail(str(error))
        out.print(table)
    if wrong:
        fail(f"{wrong} check(s) failed", 1)


@app.command()
def machine(
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure the ceilings again.")] = False,
) -> None:
    """Show this machine: what it is, what it was measured to reach, and write asv's machine file."""
    from archbench.hardware.asv_machine import write
    from archbench.hardware.detect import default_device, detect, machine_name
    from archbench.hardware.profiles import match
    from archbench.hardware.report import machine_tables
    from archbench.harness.session import measured_ceilings

    try:
        host = detect()
        device = default_device(host)
        name = machine_name(host, device)
        written = write(host, name)
        with err.status("measuring the ceilings (once per boot)"):
            ceilings = measured_ceilings(host, device, refresh=refresh)
    except (ValueError, OSError) as error:
        fail(str(error))
    for table in machine_tables(host, name, ceilings, match(host, device)):
        out.print(table)
    out.print(f"asv machine file: {written}", highlight=False, soft_wrap=True, markup=False)


@app.command()
def run(
    targets: Targets = None,
    case: Annotated[list[str] | None, typer.Option("--case", help="Only this case; may be repeated.")] = None,
    within: Annotated[
        float | None, typer.Option("--within", min=0, help="Minutes: as many cases as should fit into them.")
    ] = None,
    keep_in: Annotated[
        Path | None,
        typer.Option("--keep-in", resolve_path=True, help="Work in this folder; a run cut off there goes on there."),
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--into", resolve_path=True, help="Results folder, if not that of asv.conf.json.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Measure on a machine that is not ready; every row says so.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", resolve_path=True, help="Trace a call of each cell into this folder: docs/traces.md."),
    ] = None,
    nnodes: Annotated[
        int, typer.Option("--nnodes", help="Hosts the ranks are spread over: docs/several-hosts.md.")
    ] = 1,
    node_rank: Annotated[int, typer.Option("--node-rank", help="This host's number; 0 measures.")] = 0,
    rdzv_endpoint: Annotated[
        str, typer.Option("--rdzv-endpoint", metavar="HOST:PORT", help="Where the first host is met.")
    ] = "",
) -> None:
    """Measure on this machine (asv run on the current environment) and print the table.

    Ctrl-C, SIGTERM and SIGHUP end it with 130; the cells that are finished are kept. With --keep-in they stay in that
    folder, after a loss of power too, and the same command goes on there. A board that is not ready (a weak supply,
    heat, a slow governor, a clock nobody sets) is refused with what mends it.

    With --nnodes the same command runs on every host, each with its own --node-rank: all but the first follow it.
    """
    from archbench.hardware.detect import default_device, detect, place
    from archbench.hardware.preflight import fact, preflight
    from archbench.harness import front, hosts
    from archbench.harness import trace as traces
    from archbench.harness.configuration import results_dir
    from archbench.harness.plan import plan
    from archbench.harness.processes import interruptible
    from archbench.harness.session import find_configuration
    from archbench.nodes import Nodes

    progress = _Progress()
    try:
        nodes = Nodes(nnodes, node_rank, rdzv_endpoint)
        if nodes.rank:
            with interruptible():
                raise typer.Exit(hosts.follow(nodes, select(tuple(targets or ())), lambda: _say(WAITING)))
        configuration = find_configuration(Path.cwd())
        host = detect()
        wanted = plan(tuple(targets or ()), tuple(case or ()), place(host, default_device(host)), within)
        for sentence in wanted.left_out:
            _say(f"not measured: {sentence}")
        obstacles = preflight(folders=[into or results_dir(configuration), *([keep_in] if keep_in else [])])
        for obstacle in obstacles:
            _say(str(obstacle))
        if obstacles and not force:
            fail(NOT_READY)
        with interruptible(), traces.asked_for(trace), hosts.led(nodes, wanted.cases, _say):
            outcome = front.run(
                wanted,
                configuration,
                progress,
                waiting=lambda: _say(WAITING),
                keep_in=keep_in,
                into=into,
                forced=fact(obstacles),
            )
    except (ValueError, OSError) as error:  # unknown names, no repository, a device or a folder that is not there
        fail(str(error))
    except front.RunFailed as error:
        fail(str(error), 1)
    except front.Interrupted as interrupted:
        progress.stop()
        kept = interrupted.kept
        if keep_in is not None:
            fail(f"interrupted; the same command goes on in {keep_in}", 130)
        fail(f"interrupted; {len(kept.cells)} finished cells: {kept.path}" if kept else NOTHING_KEPT, 130)
    finally:
        progress.stop()
    if outcome.run.dirty:
        _say("the work tree differs from its commit: these rows are marked dirty")
    for track, names in (traces.missing(trace, outcome.cells) if trace else {}).items():
        _say(f"no trace of {track}: torch does nothing in {', '.join(names)}")
    _print_cells(outcome.cells)
    out.print(f"results: {outcome.path}\nnext: archbench board", highlight=False, soft_wrap=True, markup=False)
    if missing := wanted.missing(outcome.cells):
        cases = Counter(f"{track}/{contender}" for track, contender, _ in missing)
        missed = ", ".join(f"{name} ({count} case{'s' * (count > 1)})" for name, count in cases.items())
        fail(f"planned and not measured: {missed}: {NOT_SEEN}", 1)


def _say(sentence: str) -> None:
    err.print(legible(sentence), style="yellow", markup=False, highlight=False, soft_wrap=True)


class _Progress:
    """A bar with the remaining time on a terminal, a line per cell elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=err,
        )
        self._task = self._bar.add_task("preparing", total=None)
        if err.is_terminal:
            self._bar.start()

    def __call__(self, done: int, total: int, cell: Cell | None) -> None:
        if cell is None:
            self._bar.update(self._task, total=total, completed=0, description="machine, ceilings")
            return
        name = f"{cell.contender} {cell.case}"
        self._bar.update(self._task, completed=done, description=name if done < total else "asv writes its files")
        if not err.is_terminal:
            err.print(f"[{done}/{total}] {name}: {_outcome(cell)}", markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._bar.stop()


def _outcome(cell: Cell) -> str:
    from archbench.formatting import ratio, seconds

    if cell.status != "ok":
        return legible(f"{cell.status}: {cell.reason}")
    slowdown = cell.metrics["slowdown"]
    numbers = f"{seconds(cell.metrics['latency_s'].value)}, {ratio(slowdown.value, slowdown.ci)} of {cell.baseline}"
    return legible(f"{numbers} ({cell.reason})" if cell.reason else numbers)


def _print_cells(cells: Sequence[Cell]) -> None:
    for slug in dict.fromkeys(cell.case for cell in cells):
        table = Table(title=plain(slug), title_justify="left")
        for column in ("contender", "result"):
            table.add_column(column, overflow="fold")
        group = [cell for cell in cells if cell.case == slug]
        group.sort(key=lambda c: (c.status != "ok", c.metrics["slowdown"].value if c.status == "ok" else 0.0))
        for cell in group:
            table.add_row(plain(cell.contender), plain(_outcome(cell)))
        out.print(table)
