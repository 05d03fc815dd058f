"""What was worked out before, kept between renders: a disposable SQLite database for each results folder.

An entry is found by a digest of everything it was made from, the code included, so an entry that is there is right and
one whose inputs changed is never found: no file is trusted by its name, size or date. Whatever is wrong with the
database, locked, corrupt, foreign, on a full or read-only disk, it is as if it were empty: slower, never other numbers.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing, suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from archbench.reports.asv_reader import Reader
from archbench.reports.asv_tree import AsvFile, Layout

MAX_BYTES = 1 << 30  # of a database; a larger one is begun anew
SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
CODE = (
    "asv_reader.py",
    "asv_tree.py",
    "cache.py",
    "load.py",
    "meaning.py",
    "steps.py",
)  # what decides on the content of an entry


PAGE = 16_384  # bytes: an entry of a few hundred points then lies on two pages, not on a chain of six
CHECK = 8  # bytes before each value that tell whether it is whole


def place(folder: Path) -> Path:
    """Where the database of a results folder is."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.blake2b(os.fsencode(folder.resolve()), digest_size=12).hexdigest()
    return Path(home) / "archbench" / f"results-{name}.sqlite"


@cache
def _code() -> bytes:
    found = hashlib.blake2b(digest_size=16)
    for name in CODE:
        found.update((files("archbench.reports") / name).read_bytes())
    return found.digest()


def _check(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=CHECK).digest()


class Cache:
    """Bytes by key. Use as a context: what was put is written at its end, and entries nobody asked for are dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._asked: set[bytes] = set()
        self._fresh: dict[bytes, bytes] = {}

    def __enter__(self) -> Cache:
        try:
            if self._path.is_file() and self._path.stat().st_size <= MAX_BYTES:
                self._connection = sqlite3.connect(self._path, timeout=0)
        except (OSError, sqlite3.Error):
            self._connection = None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None and self._fresh:
            self._write()
        if self._connection is not None:
            self._connection.close()

    @staticmethod
    def key(*parts: bytes) -> bytes:
        """The key of what is made from ``parts`` by the code as it is."""
        found = hashlib.sha256(_code())  # where the processor has instructions for it, twice as quick as blake2b
        for part in parts:
            found.update(len(part).to_bytes(8, "little"))
            found.update(part)
        return found.digest()

    def get(self, key: bytes) -> bytes | None:
        self._asked.add(key)
        if self._connection is None:
            return None
        try:
            row = self._connection.execute("SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error:
            self._connection.close()
            self._connection = None
            return None
        if row is None or not isinstance(row[0], bytes) or row[0][:CHECK] != _check(row[0][CHECK:]):
            return None
        return row[0][CHECK:]

    def put(self, key: bytes, value: bytes) -> None:
        self._asked.add(key)
        self._fresh[key] = _check(value) + value

    def _write(self) -> None:
        """Add what is new; where the database is unusable, begin a new one beside it and move it there."""
        try:
            if self._connection is not None:
                known = self._connection.execute("SELECT key FROM entries").fetchall()
                stale = [row for row in known if row[0] not in self._asked]
                self._connection.execute("PRAGMA journal_mode = MEMORY")
                self._connection.execute("PRAGMA synchronous = OFF")
                with self._connection:
                    self._connection.executemany("DELETE FROM entries WHERE key = ?", stale)
                    self._connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", self._fresh.items())
                return
        except sqlite3.Error:
            pass
        self._begin()

    def _begin(self) -> None:
        staged = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with suppress(OSError, sqlite3.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(staged)) as made:
                made.execute(f"PRAGMA page_size = {PAGE}")
                made.execute("PRAGMA journal_mode = OFF")
                made.execute("PRAGMA synchronous = OFF")
                made.execute(SCHEMA)
                made.executemany("INSERT INTO entries VALUES (?, ?)", sorted(self._fresh.items()))
                made.commit()
            os.replace(staged, self._path)
        with suppress(OSError):  # it is there still where anything failed
            staged.unlink()


class _Packed(msgspec.Struct, array_like=True):
    """An ``AsvFile`` as bytes; its layout is an entry of its own."""

    commit: str
    environment: str
    date_ms: float
    params: dict[str, Any]
    layout: bytes
    value: bytes
    low: bytes
    high: bytes
    n: bytes
    code: bytes
    reasons: dict[int, str]


class CachedReader:
    """Reads asv's files, each only once: a file is known by its content."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._reader = Reader()
        self._layouts: dict[bytes, Layout] = {}

    def read(self, content: bytes, machine: str) -> AsvFile:
        """Raises Unreadable."""
        key = Cache.key(b"file", machine.encode(), content)
        packed = self._cache.get(key)
        found = None if packed is None else self._unpacked(packed)
        if found is None:
            found = self._reader.read(content, machine)
            self._put(key, found)
        return found

    def _put(self, key: bytes, file: AsvFile) -> None:
        layout = file.layout
        packed = _Packed(
            file.commit,
            file.environment,
            file.date_ms,
            dict(file.params),
            layout.digest,
            file.value.tobytes(),
            file.low.tobytes(),
            file.high.tobytes(),
            file.n.tobytes(),
            file.code.tobytes(),
            dict(file.reasons),
        )
        try:
            self._cache.put(key, msgspec.msgpack.encode(packed))
        except (OverflowError, msgspec.MsgspecError):
            return  # a number in its params that no format holds
        if layout.digest not in self._layouts:
            self._layouts[layout.digest] = layout
            self._cache.put(Cache.key(b"layout", layout.digest), layout.packed)

    def _unpacked(self, packed: bytes) -> AsvFile | None:
        found = msgspec.msgpack.decode(packed, type=_Packed)
        layout = self._layouts.get(found.layout)
        if layout is None:
            stored = self._cache.get(Cache.key(b"layout", found.layout))
            if stored is None:
                return None
            names, combinations = msgspec.msgpack.decode(
                stored, type=tuple[tuple[str, ...], tuple[tuple[tuple[str, ...], ...], ...]]
            )
            layout = self._layouts[found.layout] = self._reader.same(Layout(names, combinations))
        return AsvFile(
            found.commit,
            found.environment,
            found.date_ms,
            found.params,
            layout,
            value=np.frombuffer(found.value),
            low=np.frombuffer(found.low),
            high=np.frombuffer(found.high),
            n=np.frombuffer(found.n, dtype=np.int64),
            code=np.frombuffer(found.code, dtype=np.uint8),
            reasons=found.reasons,
        )
