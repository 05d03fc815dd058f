"""``archbench agent``: a board that measures new commits by itself and delivers what it found."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from archbench.cli.console import app, fail, out
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


class Format(StrEnum):
    text = "text"
    json = "json"


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
    from archbench.hardware.agent.log import logging_to
    from archbench.hardware.agent.worker import AlreadyRunning, look
    from archbench.harness.processes import interruptible

    folder = _state(state)
    try:
        config = load(folder)
        with logging_to(folder / "log") as log, interruptible():
            while True:
                seen = look(config, log, tuple(again or ()))
                if once:
                    break
                time.sleep(config.interval_s)
                again, config = None, load(folder)
    except AlreadyRunning as error:
        fail(str(error), ALREADY_RUNNING)
    except KeyboardInterrupt:
        fail("interrupted; the next look goes on", INTERRUPTED)
    except ValueError as error:
        fail(str(error))
    except OSError as error:  # not even the outcome could be noted
        fail(str(error), 1)
    raise typer.Exit(0 if seen.whole else 1)
