"""The agent's log: one line an event, in UTC, in files that take turns, and on stderr for systemd's journal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

from archbench.names import legible

FILE = "agent.log"
FILE_BYTES = 512 << 10
FILES = 4  # older ones


class _OneLine(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def format(self, record: logging.LogRecord) -> str:
        return legible(super().format(record)).replace("\n", " | ").replace("\t", " ")


class _Rotating(RotatingFileHandler):
    """A full card costs the line and not the agent; stderr has it all the same."""

    def handleError(self, record: logging.LogRecord) -> None:
        return


@contextmanager
def logging_to(folder: Path) -> Iterator[logging.Logger]:
    """A logger that writes into ``folder`` and to stderr. Raises nothing: where the folder cannot be, stderr has it."""
    logger = logging.Logger("archbench.agent", logging.INFO)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handlers.append(_Rotating(folder / FILE, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8", delay=True))
    except OSError as error:
        logger.addHandler(handlers[0])
        logger.warning("no log file: %s", error)
    for handler in handlers:
        handler.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    try:
        yield logger
    finally:
        for handler in handlers:
            handler.close()
