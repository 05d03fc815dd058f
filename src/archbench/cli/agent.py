"""``archbench agent``: a board that measures new commits by itself and delivers what it found."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from time import sleep
from typing import Annotated

import typer

from archbench.cli.console import RESULTS, Results, app, fail, out
from archbench.names import legible

ALREADY_RUNNING = 3
INTERRUPTED = 130

agent = typer.Typer(
    help="Measure new commits unattended and deliver the results, signed, to a git repository.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(agent, name="agent")

State = Annotated[
    Path | None,
    typer.Option(
        "--state",
        resolve_path=True,
        help="The agent's folder; left out: $STATE_DIRECTORY, /var/lib/archbench-agent, or the user's own.",
        show_default=False,
    ),
]


def _state(given: Path | None) -> Path:
    from archbench.hardware.agent.config import state_folder

    return given or state_folder()


def _say(line: str) -> None:
    out.print(legible(line), highlight=False, soft_wrap=True, markup=False)


@agent.command()
def init(
    state: State = None,
    machine: Annotated[str | None, typer.Option("--machine", help="Name of this machine in results.")] = None,
    repository: Annotated[
        str | None, typer.Option("--repository", help="Repository to measure; left out: the clone one is in.")
    ] = None,
    remote: Annotated[str | None, typer.Option("--remote", help="Repository results are delivered to.")] = None,
    branch: Annotated[str | None, typer.Option("--branch", help="Branch whose commits are measured.")] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", help="TRACK or TRACK/CONTENDER; may be repeated.")
    ] = None,
    schedule: Annotated[str | None, typer.Option("--schedule", help="systemd's OnCalendar.")] = None,
    python: Annotated[str | None, typer.Option("--python", help="An interpreter with what a run needs.")] = None,
    install: Annotated[bool, typer.Option("--install", help="Put the units into /etc/systemd/system.")] = False,
) -> None:
    """Set up this machine's agent: configuration, signing key, systemd units. Detects what is not given."""
    from archbench.hardware.agent.init import init as set_up

    given = {
        "machine": machine,
        "repository": repository,
        "remote": remote,
        "branch": branch,
        "suites": tuple(suite) if suite else None,
        "schedule": schedule,
        "python": python,
    }
    wishes = {name: wish for name, wish in given.items() if wish is not None}
    try:
        made = set_up(_state(state), wishes, here=Path.cwd(), install=install)
    except (ValueError, OSError) as error:
        fail(str(error))
    for line in made.did:
        _say(line)
    _say(f"measures {', '.join(made.config.suites)} of {made.config.repository}, branch {made.config.branch}")
    _say(f"delivers to machine/{made.config.machine} of {made.config.remote}")
    _say("the owner of the results adds this line to the allowed_signers file:")
    _say(made.key.allowed_signers_line)
    for line in made.next:
        _say(f"next: {line}")


@agent.command()
def run(
    once: Annotated[bool, typer.Option("--once/--watch", help="One look, or a look after every pause.")] = True,
    again: Annotated[
        list[str] | None, typer.Option("--again", help="Measure this commit whatever became of it; may be repeated.")
    ] = None,
    state: State = None,
) -> None:
    """Look for commits without results, measure them, deliver.

    Exit 0: done, or nothing to do. 1: something asks for attention, see status. 2: a mistake in the call or in
    agent.toml. 3: another agent is at work. 130: interrupted; the next look goes on.
    """
    from archbench.hardware.agent.config import load
    from archbench.hardware.agent.lock import AlreadyRunning
    from archbench.hardware.agent.log import logging_to
    from archbench.hardware.agent.worker import look
    from archbench.harness.processes import interruptible

    folder = _state(state)
    try:
        config = load(folder)
        with logging_to(folder / "log") as log, interruptible():
            seen = look(config, log, tuple(again or ()), by_hand=sys.stdin.isatty())
            while not once:
                sleep(config.interval_s)
                try:
                    config = load(folder)
                    look(config, log)
                except (AlreadyRunning, ValueError, OSError) as error:  # until it is mended
                    log.warning("no look: %s", error)
    except AlreadyRunning as error:
        fail(str(error), ALREADY_RUNNING)
    except KeyboardInterrupt:
        fail("interrupted; the next look goes on", INTERRUPTED)
    except ValueError as error:
        fail(str(error))
    except OSError as error:  # not even the outcome could be noted
        fail(f"the state folder {folder}: {error}", 1)
    raise typer.Exit(0 if seen.whole else 1)


@agent.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, schema 1.")] = False,
    state: State = None,
) -> None:
    """Say how the agent fares. Exit 0: all is well. 1: something asks for attention. 2: there is no agent."""
    import msgspec

    from archbench.hardware.agent.config import load
    from archbench.hardware.agent.status import status as ask

    try:
        found = ask(load(_state(state)))
    except (ValueError, OSError) as error:
        fail(str(error))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        for line in found.lines():
            _say(line)
    raise typer.Exit(found.exit_code)


@agent.command()
def collect(
    remote: Annotated[str, typer.Argument(help="The repository machines deliver to.", show_default=False)],
    allowed_signers: Annotated[
        Path, typer.Option("--allowed-signers", help="ssh-keygen's file: a line for each machine.")
    ],
    revoked_keys: Annotated[
        Path | None, typer.Option("--revoked-keys", help="Keys that do not count any more, or a KRL.")
    ] = None,
    results: Results = RESULTS,
    state: Annotated[
        Path | None,
        typer.Option("--state", help="The collector's folder: mirror and quarantine.", show_default=False),
    ] = None,
    repository: Annotated[
        Path | None, typer.Option("--repository", help="Commits must be in the history of this git repository.")
    ] = None,
    accept: Annotated[
        list[str] | None, typer.Option("--accept", help="A commit you vouch for; its rows are not marked verified.")
    ] = None,
    skip: Annotated[list[str] | None, typer.Option("--skip", help="A commit that is passed over for good.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, schema 1.")] = False,
) -> None:
    """Take in what machines delivered: verify every commit, merge what counts, name the rest with its reason.

    Exit 0: all of it counts. 1: something is in quarantine. 2: nothing could be collected.
    """
    from archbench.hardware.agent.collect import collect as take_in
    from archbench.hardware.agent.signed_commit import Signers
    from archbench.reports.merge import merge
    from archbench.reports.validate import validate

    def against(folder: Path) -> list[tuple[str, str]]:
        verdict = validate(folder, now=datetime.now(UTC), repository=repository)
        return [(problem.path, problem.reason) for problem in verdict.quarantined]

    try:
        found = take_in(
            remote,
            results,
            Signers(allowed_signers, revoked_keys),
            state or _own_state() / "archbench-collect",
            merge=merge,
            validate=against,
            accept=tuple(accept or ()),
            skip=tuple(skip or ()),
        )
    except (ValueError, OSError) as error:
        fail(str(error))
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        for line in found.lines():
            _say(line)
    raise typer.Exit(found.exit_code)


def _own_state() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
