"""One look of the agent: deliver what waits, find commits without results, measure them, deliver those.

Each step can be cut off anywhere and be done again: the commit is noted as begun before anything is done for it, the
run goes on in its folder, a run is put into the outbox under its own name, and only then the commit is noted as done.
What goes wrong becomes a reason, in the log and in the state, and never stands in the way of the next look.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from archbench.hardware.agent.child import supervise
from archbench.hardware.agent.config import AgentConfig, Misconfigured
from archbench.hardware.agent.environment import CannotInstall, Environment, Interpreter
from archbench.hardware.agent.lock import alone
from archbench.hardware.agent.memory import Look, Memory, own_code
from archbench.hardware.agent.outbox import Outbox
from archbench.hardware.agent.run_folder import RunFolder
from archbench.hardware.agent.signed_git import GitFailed
from archbench.hardware.agent.source import Source
from archbench.hardware.preflight import preflight

# A clock that is further behind a commit is not what the commit's author had; a day more, and readers refuse the run.
BEHIND = timedelta(hours=12)
# A cell that takes the machine down is left out by the run itself; what does so before any cell is left here.
DEATHS = 50
DIED = f"the machine went down {DEATHS} times before another cell was finished"


class _Held(Exception):
    """Nothing can be measured now, whichever commit; the message says why."""


def look(config: AgentConfig, log: logging.Logger, again: Collection[str] = (), *, by_hand: bool = False) -> Look:
    """Look once. ``again`` are commits that are measured whatever became of them before; ``by_hand``, what waits to be
    delivered is not left for later, for whoever looks has just mended something.

    Raises AlreadyRunning, Misconfigured, and OSError where not even the outcome can be noted.
    """
    with alone(config.state) as lock:
        return Worker(config, log, lock, by_hand=by_hand).look(again)


class Worker:
    """What holds the agent's lock for one look."""

    def __init__(self, config: AgentConfig, log: logging.Logger, lock: int, *, by_hand: bool = False) -> None:
        self._config, self._log, self._lock, self._by_hand = config, log, lock, by_hand
        self._memory = Memory(config.state, config.machine, config.suites)
        self._source = Source(config, hold=[lock])
        self._environment = Environment(config, config.state / "log" / "install.log", hold=[lock])
        self._outbox = Outbox(config)
        self._reasons: list[str] = []
        self._offline = False

    def look(self, again: Collection[str]) -> Look:
        """Do all there is to do now. Raises Misconfigured, and OSError where not even the outcome can be noted."""
        measured, was = 0, self._memory.was
        if was and self._outbox.waiting():
            raise Misconfigured(
                f"runs of {was} wait to be delivered, and machine is {self._config.machine}: let {self._config.file} "
                f"say {was} until they are"
            )
        try:
            self._wake()
            self._deliver()
            for commit in self._todo(again):
                measured += self._one(commit)
                self._deliver()
        except _Held as held:
            self._wrong(str(held))
        except GitFailed as failed:
            self._wrong(f"the clone: {failed}")
        except OSError as error:
            self._wrong(f"the state folder: {error}")
        waiting = len(self._outbox.waiting())
        if waiting:
            why = self._outbox.backoff().reason or "not tried yet"
            self._reasons.append(f"{waiting} run(s) wait to be delivered: {why}")
        seen = self._memory.looked(measured, tuple(self._reasons))
        self._log.info("looked: %d measured%s", measured, "" if seen.whole else f"; {'; '.join(seen.reasons)}")
        return seen

    def _wrong(self, reason: str) -> None:
        self._reasons.append(reason)
        self._log.warning(reason)

    def _wake(self) -> None:
        """Notice what happened since the last look: a lost memory, another name, a clock that was moved."""
        last = self._memory.state.last
        if self._memory.forgot:
            self._wrong(f"what was known of commits is lost: {self._memory.forgot}")
        if self._memory.was:
            self._log.warning(
                "the machine was called %s before: what was begun under that name is left", self._memory.was
            )
            shutil.rmtree(self._config.state / "work", ignore_errors=True)
        if last is not None and datetime.now(UTC) < datetime.fromisoformat(last.when) - timedelta(minutes=1):
            self._log.warning("the clock was moved back: the last look ended at %s", last.when)

    def _deliver(self) -> None:
        if self._outbox.waiting():
            delivered = self._outbox.deliver(at_once=self._by_hand)
            if delivered.sent:
                self._log.info("delivered %s", ", ".join(delivered.sent))
            if delivered.reason:
                self._log.warning("not delivered: %s", delivered.reason)

    def _todo(self, again: Collection[str]) -> list[str]:
        """The commits to measure, those first that were cut off. Raises GitFailed, _Held, OSError."""
        reason = self._source.fetch()
        self._offline = bool(reason)
        if reason:
            self._wrong(f"{self._config.repository} cannot be fetched: {reason}")
        if not self._source.is_there:
            raise _Held("nothing was ever fetched")
        if self._memory.is_new:
            self._recall()
        asked = [self._again(name) for name in again]
        cut_off = [commit for commit in self._cut_off() if not self._is_gone(commit)]
        newest = self._source.newest()
        self._tidy({*cut_off, *newest})
        return [commit for commit in dict.fromkeys((*cut_off, *asked, *newest)) if self._is_wanted(commit)]

    def _recall(self) -> None:
        """An agent that knows no commit asks the remote which it has delivered before. Raises OSError."""
        try:
            for commit, run in self._source.delivered().items():
                self._memory.note(commit, "done", run=run, reason="found at the remote")
        except GitFailed as failed:
            # Measured twice is a row more; taken for measured would be a row less.
            self._log.warning("what was delivered before cannot be asked: %s", failed)

    def _cut_off(self) -> list[str]:
        begun = [m for m in self._memory.state.commits.values() if m.outcome == "begun"]
        return [m.commit for m in sorted(begun, key=lambda m: -m.number)]

    def _is_gone(self, commit: str) -> bool:
        """Whether a commit that was begun is in the clone no more; then it is given up. Raises OSError."""
        if self._source.full(commit) is not None:
            return False
        self._give_up(commit, self._folder(commit), "the repository does not hold it any more")
        return True

    def _again(self, name: str) -> str:
        """Forget a commit the owner wants to be measured again. Raises _Held, OSError."""
        commit = self._source.full(name)
        if commit is None:
            raise _Held(f"no commit {name!r} is known")
        self._log.info("%s is measured again, as asked", commit[:12])
        self._folder(commit).remove()
        self._memory.forget(commit)
        return commit

    def _folder(self, commit: str) -> RunFolder:
        return RunFolder(self._config.state / "work" / commit, self._config.machine)

    def _is_wanted(self, commit: str) -> bool:
        met = self._memory.met(commit)
        if met is None or met.outcome in ("begun", "failed") or not {*self._config.suites} <= {*met.suites}:
            return True
        return met.outcome == "skipped" and met.agent != own_code()

    def _tidy(self, current: Collection[str]) -> None:
        """Remove working folders nobody comes back to. What was measured in them counts. Raises OSError."""
        work = self._config.state / "work"
        for name in sorted(path.name for path in work.iterdir()) if work.is_dir() else ():
            met, folder = self._memory.met(name), self._folder(name)
            if met is not None and met.outcome in ("done", "skipped"):
                folder.remove()
            elif name not in current:
                self._salvage(folder)
                folder.remove()

    def _one(self, commit: str) -> int:
        """Measure a commit, or note why not; 1 where it has results now. Raises _Held, GitFailed, OSError."""
        folder, met = self._folder(commit), self._memory.met(commit)
        if met is not None and met.outcome in ("done", "skipped"):  # wanted again: it begins anew
            met = None
        cells, reason = folder.cells(), met.reason if met is not None else ""
        attempts, deaths = (met.attempts, met.deaths) if met is not None and cells <= met.cells else (0, 0)
        if folder.whole() is None:
            if attempts >= self._config.attempts or deaths >= DEATHS:
                return self._give_up(commit, folder, reason if deaths < DEATHS else DIED)
            self._see_the_way_is_free(commit)
        # Taken back where it is we who end it: who finds the mark knows that nobody could.
        self._memory.note(commit, "begun", attempts=attempts, deaths=deaths + 1, cells=cells, reason=reason)
        try:
            if folder.whole() is None:
                self._log.info("%s: measuring%s", commit[:12], f", {cells} cells are there" if cells else "")
                self._measure(commit, folder)
            run = folder.whole()
            if run is None:
                raise _Failed("archbench run ended without the file of a run")
            self._outbox.put(run, folder.results)
        except (KeyboardInterrupt, GitFailed):  # neither is the commit's fault
            self._memory.note(commit, "begun", attempts=attempts, deaths=deaths, cells=folder.cells(), reason=reason)
            raise
        except (_Failed, CannotInstall, ValueError) as error:
            blameless = folder.cells() > cells or (self._offline and isinstance(error, CannotInstall))
            return self._failed(commit, folder, 0 if blameless else attempts + 1, str(error))
        self._memory.note(commit, "done", run=run, cells=folder.measured(run))
        self._log.info("%s: measured, run %s", commit[:12], run)
        folder.remove()
        return 1

    def _failed(self, commit: str, folder: RunFolder, attempts: int, reason: str) -> int:
        self._wrong(f"{commit[:12]}: {reason}")
        self._memory.note(commit, "failed", attempts=attempts, cells=folder.cells(), reason=reason)
        return self._give_up(commit, folder, reason) if attempts >= self._config.attempts else 0

    def _give_up(self, commit: str, folder: RunFolder, reason: str) -> int:
        """Leave a commit that failed as often as it may; what was measured of it counts."""
        cells, run = folder.cells(), self._salvage(folder)
        self._memory.note(commit, "skipped", cells=cells, run=run, reason=reason)
        self._wrong(f"{commit[:12]} is given up: {reason}")
        folder.remove()
        return 1 if run else 0

    def _salvage(self, folder: RunFolder) -> str:
        """Put the finished cells of an unfinished run into the outbox: the run, or nothing. Raises OSError."""
        run = folder.salvage()
        if run is None:
            return ""
        try:
            self._outbox.put(run, folder.results)
        except ValueError as error:
            self._wrong(f"what is there of run {run} cannot be delivered: {error}")
            return ""
        return run

    def _see_the_way_is_free(self, commit: str) -> None:
        """Raises _Held, GitFailed."""
        found = preflight(
            folders=[self._config.state],
            min_free_bytes=self._config.min_free_bytes,
            max_temperature_c=self._config.max_temperature_c,
        )
        if found:
            raise _Held("not measured: " + "; ".join(map(str, found)))
        made = self._source.date(commit)
        if datetime.now(UTC) < made - BEHIND:
            raise _Held(f"not measured: the clock is behind: commit {commit[:12]} is of {made:%Y-%m-%dT%H:%M:%SZ}")

    def _measure(self, commit: str, folder: RunFolder) -> None:
        """Run the commit's own archbench until the run is whole. Raises _Failed, CannotInstall, GitFailed, OSError."""
        self._source.check_out(commit)
        interpreter = self._environment.ready(self._source.top)
        for words in self._config.prepare:
            self._archbench(interpreter, folder, words.split(), "preparing")
        options = ["--keep-in", str(folder.run), "--into", str(folder.results), "--force"]
        self._archbench(interpreter, folder, ["run", *self._config.suites, *options], "the run")

    def _archbench(self, interpreter: Interpreter, folder: RunFolder, words: Sequence[str], what: str) -> None:
        cores = sorted(os.sched_getaffinity(0))[: self._config.threads] if self._config.threads else []
        ended = supervise(
            [interpreter.python, "-m", "archbench", *words],
            folder=self._source.top,
            environment=interpreter.variables,
            log=folder.log,
            deadline_s=self._config.deadline_s,
            hold=[self._lock],
            cores=cores,
        )
        if ended.code is None:
            raise _Failed(f"{what} took more than {self._config.deadline_s:g} s; it goes on in the next look")
        if ended.code:
            raise _Failed(f"{what} ended with {ended.code}: {ended.said}")


class _Failed(Exception):
    """A commit brought no results this time; the message says why."""
