"""The quick way from the bytes of asv's result files to columns; the careful one is ``asv_tree.parse``.

``Reader`` first tries a typed decoder that skips the columns nobody shows, and takes a file only when all of it is as
asv writes it today. Everything else, unusual or wrong, goes to ``parse``. Both give the same columns.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from typing import Any, Literal

import msgspec
import numpy as np

from archbench.reports.asv_tree import FAILED, MAX_POINTS, OK, SKIPPED, AsvFile, Floats, Layout, count, parse
from archbench.reports.load import Unreadable, read_json
from archbench.reports.meaning import MAX_NAME, MAX_PARAMETER, check_asv, is_commit

_ESCAPE = re.compile(rb'\\(?:u[0-9A-Fa-f]{4}|[^"/])')  # of more than a quotation mark or a slash

# The typed decoder does not read bare NaN and Infinity, which asv writes. They become texts nothing else in the file
# holds. Those begin with a quotation mark, so if what they replace is inside a text of the file, the file is no JSON
# any more and ``parse`` has the word. A column that is shown has numbers, nulls and these texts and nothing else. An
# interval with an infinite end is none, so one text does for both signs.
MARK = b'"  '
NAN, INFINITE = MARK + b'-inf"', MARK + b'inf"'
_BARE = ((b"NaN", NAN), (b"-Infinity", INFINITE), (b"Infinity", INFINITE))
_TEXTS = ("  -inf", "  inf")
_Numbers = list[float | Literal["  -inf", "  inf"] | None] | None
_SHOWN = {"result": "value", "stats_ci_99_a": "low", "stats_ci_99_b": "high", "stats_repeat": "repeat"}
_RAW = msgspec.Raw
_COLUMNS = ("result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
            "stats_q_75", "stats_number", "stats_repeat", "samples", "profile")  # fmt: skip


@cache
def _decoder(columns: tuple[str, ...]) -> Callable[[bytes], Any]:
    """Reads a file whose rows have these columns."""
    fields: list[tuple[str, Any, Any]] = []
    for index, column in enumerate(columns):
        if column == "params":
            fields.append(("params", _RAW, _RAW(b"[]")))
        elif column in _SHOWN:
            fields.append((_SHOWN[column], _Numbers, None))
        else:
            fields.append((f"skipped_{index}", _RAW, _RAW(b"")))
    row = msgspec.defstruct("Row", fields, array_like=True, gc=False)
    file = msgspec.defstruct(
        "File",
        [("version", int), ("commit_hash", str), ("env_name", str), ("params", dict[str, Any]),
         ("result_columns", list[str]), ("results", dict[str, row]), ("date", float, 0.0)],  # type: ignore[valid-type]
    )  # fmt: skip
    return msgspec.json.Decoder(file).decode


def _quoted(content: bytes, before: Sequence[bytes] = (b"",)) -> bytes:
    """The bare words as texts, where one of these bytes is before them."""
    for word, text in _BARE[:1] if b"Infinity" not in content else _BARE:
        for byte in before:
            content = content.replace(byte + word, byte + text)
    return content


def _decoded(text: bytes) -> Any:
    """The file as a struct, None where it is not as expected."""
    try:
        file = _decoder(_COLUMNS)(text)
        columns = tuple(file.result_columns)
        if columns == _COLUMNS:
            return file
        if len(set(columns)) != len(columns) or not {"result", "params"} <= set(columns):
            return None
        return _decoder(columns)(text)
    except (msgspec.DecodeError, RecursionError):
        return None


class Reader:
    """Reads the files of an archive; remembers their layouts."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, Layout] = {}  # by digest
        self._seen: dict[tuple[tuple[str, ...], bytes], Layout] = {}  # by names and the text of their parameters
        self._combinations: dict[bytes, tuple[tuple[str, ...], ...]] = {}

    def read(self, content: bytes, machine: str) -> AsvFile:
        """Raises Unreadable."""
        found = self._quickly(content, machine)
        if found is not None:
            return found
        whole = read_json(content)
        if not isinstance(whole, dict):
            raise Unreadable(f"holds a {type(whole).__name__}, not an object")
        try:
            check_asv(content, whole)
        except ValueError as error:
            raise Unreadable(str(error)) from error
        return parse(whole, machine)

    def same(self, layout: Layout) -> Layout:
        """The first layout that is equal to this one."""
        return self._layouts.setdefault(layout.digest, layout)

    def _quickly(self, content: bytes, machine: str) -> AsvFile | None:
        """A file as asv writes it today; None for anything else, wrong or just unusual."""
        if MARK in content or not _surely_legible(content):
            return None
        file = _decoded(_quoted(content))
        if file is None:  # perhaps a name holds one, too
            file = _decoded(_quoted(content, (b" ", b"[", b",")))
        if file is None:
            return None
        if file.version != 2 or not is_commit(file.commit_hash) or file.params.get("machine") != machine:
            return None
        if not 0 <= file.date < 4_102_444_800_000:
            return None
        if any(text in _TEXTS for text in (file.env_name, *file.params.values(), *file.result_columns)):
            return None  # a NaN where nobody looks for one
        rows = list(file.results.values())
        layout = self._layout(tuple(file.results), [row.params for row in rows])
        if layout is None or len(layout.keys) > MAX_POINTS:
            return None
        shown = {}
        for column in ("value", "low", "high", "repeat"):
            known = column in type(rows[0]).__struct_fields__ if rows else False
            found = _flat(list(map(attrgetter(column), rows)) if known else list(layout.nothing), layout)
            if found is None:
                return None
            shown[column] = found
        value, low, high = shown["value"], shown["low"], shown["high"]
        if np.any(np.isposinf(value)):
            return None  # its sign is lost
        code = np.where(np.isnan(value), FAILED, np.where(np.isneginf(value), SKIPPED, OK)).astype(np.uint8)
        if np.any((value < 0) & (code == OK) & ~layout.may_be_negative):
            return None
        value[code == SKIPPED] = np.nan
        half = ~(np.isfinite(low) & np.isfinite(high))
        low[half] = high[half] = np.nan
        n = count(np.where(np.isfinite(shown["repeat"]), shown["repeat"], 0.0))
        return AsvFile(file.commit_hash, file.env_name, file.date, file.params, layout, value, low, high, n, code, {})

    def _layout(self, names: tuple[str, ...], params: list[msgspec.Raw]) -> Layout | None:
        key = (names, b"\n".join(params))
        found = self._seen.get(key)
        if found is None:
            if any(len(name) > MAX_NAME for name in names):
                return None
            combinations = [self._of(bytes(raw)) for raw in params]
            if any(product is None for product in combinations):
                return None
            found = self._seen[key] = self.same(Layout(names, tuple(combinations)))  # type: ignore[arg-type]
        return found

    def _of(self, raw: bytes) -> tuple[tuple[str, ...], ...] | None:
        """The combinations of a benchmark's parameters, as asv writes them: texts."""
        if raw not in self._combinations:
            try:
                axes = msgspec.json.decode(raw, type=list[list[str]])
            except msgspec.DecodeError:
                return None
            if math.prod(map(len, axes)) > MAX_POINTS or MARK in raw or not _short(axes):
                return None
            self._combinations[raw] = tuple(itertools.product(*axes))
        return self._combinations[raw]


def _surely_legible(content: bytes) -> bool:
    """Whether it is UTF-8 and no character of any text in it can hide. A quick yes, never a wrong one."""
    if b"\\" in content:
        escapes = set(_ESCAPE.findall(content.replace(b"\\\\", b"")))
        if not all(len(escape) == 6 and chr(int(escape[2:], 16)).isprintable() for escape in escapes):
            return False
    if content.isascii():
        return b"\x7f" not in content  # JSON has no control characters in texts
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return text.translate({9: None, 10: None, 13: None}).isprintable()


def _short(axes: Sequence[Sequence[str]]) -> bool:
    return all(len(text) <= MAX_PARAMETER for axis in axes for text in axis)


def _flat(columns: list[list[Any] | None], layout: Layout) -> Floats | None:
    """A column of all benchmarks end to end; None unless each has as many values as it has combinations."""
    if None in columns:
        columns = [found if found is not None else none for found, none in zip(columns, layout.nothing, strict=True)]
    if tuple(map(len, columns)) != layout.sizes:  # type: ignore[arg-type]
        return None
    return np.array(list(itertools.chain.from_iterable(columns)), dtype=np.float64)  # type: ignore[arg-type]
