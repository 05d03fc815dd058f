"""Ten thousand mutated files: nothing raises, nothing hangs, no number that is none comes through.

Valid files are damaged in their bytes and in their structure, five hundred to a results folder, and read the way the
board reads them. The seed is fixed; ARCHBENCH_FUZZ_SEED gives another ten thousand.
"""

from __future__ import annotations

import copy
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archbench.cells import Span, Started, encode
from archbench.reports.export import as_csv, as_json, as_markdown
from archbench.reports.rows import load
from archbench.reports.site import render
from results_builder import MACHINE, cell, note, run, small

SEED = int(os.environ.get("ARCHBENCH_FUZZ_SEED", "3"))
FOLDERS, FILES = 20, 500
VERSION_2 = {
    "version": 2,
    "commit_hash": "abcdef12" * 5,
    "env_name": "virtualenv-py3.11",
    "date": 1700000000000,
    "params": {"machine": MACHINE, "python": "3.11", "ram": "8 GB"},
    "requirements": {"numpy": "2.4"},
    "result_columns": ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b"],
    "results": {
        "a.time_x": [[0.5, None], [["1", "2"]], "v1", 1700000000000, 2.0, [0.4, None], [0.6, None]],
        "a.Suite.track_y": [[7], [], "v1"],
        "a.mem_z": [[4096, math.nan, 1, 2], [["'u'", "'v'"], ["1", "2"]]],
    },
    "durations": {"<build>": 3.0},
}
VERSION_1 = {
    "version": 1,
    "commit_hash": "abcdef12" * 5,
    "date": 1400000000000,
    "python": "2.7",
    "requirements": {"numpy": "1.8", "six": ""},
    "params": {"machine": MACHINE},
    "results": {
        "a.time_x": {
            "result": [0.5, None],
            "params": [["1", "2"]],
            "stats": [{"ci_99": [0.4, 0.6], "repeat": 9}, None],
        },
        "a.track_y": 7.0,
        "a.mem_z": None,
    },
}
VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.0, -0.0, 1.5, 1e-320, 1e308, -1e308, 10**30, 10**400, math.nan, math.inf,
    -math.inf, "", "x", "NaN", "1", "-1", "../..", "/etc/passwd", "--output=x", "<script>alert(1)</script>",
    "\u202e", "\u2028", "\0", "\ud800", "a" * 5000, "=1+1", "ok", "wrong", "2099-01-01", "2026-01-02T03:04:05+00:00",
    MACHINE, [], {}, [[]], [None], [1, 2, 3], {"": None}, {"machine": MACHINE}, [[["1"] * 50] * 3],
]  # fmt: skip
BYTES = [
    b'"', b"\n", b"\\", b"{", b"}", b"[", b"]", b",", b":", b"1e999", b"-", b"NaN", b"Infinity", b"\0", b"\xff",
    b"\xef\xbb\xbf", b"\\u202e", b"\\ud800", b"null", b"0" * 400,
]  # fmt: skip


def run_file(i: int) -> bytes:
    """A run of its own: other samples, and a contender of its own name, so that each mutant can reach the board."""
    records = [
        run(identity=f"20260102T030405Z-{i:06x}"),
        note(),
        cell("base"),
        cell(
            f"fast{i}", 0.5, series={"loss": [(0.0, 1.0), (1.0, 0.5)]}, spans=[Span("rank 0", "forward", 0.0, 0.5, 1)]
        ),
        cell(f"gone{i}", status="crashed", reason="it died"),
        Started("attention", "len128", f"died{i}", "base"),
    ]
    return b"".join(encode(record) + b"\n" for record in records)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a document with each of its keys."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def bend(rng: random.Random, document: Any) -> Any:
    """One change of structure: a value replaced, removed, moved, renamed, wrapped or repeated."""
    held, key = rng.choice(list(places(document)))
    action = rng.randrange(7)
    if action < 3:
        held[key] = copy.deepcopy(rng.choice(VALUES))
    elif action == 3:
        del held[key]
    elif action == 4:
        other, place = rng.choice(list(places(document)))
        held[key] = copy.deepcopy(other[place])
    elif action == 5 and isinstance(held, dict):
        held[str(rng.choice(VALUES))] = held.pop(key)
    else:
        held[key] = [held[key]] * rng.choice([1, 2, 50])
    return document


def damage(rng: random.Random, content: bytes) -> bytes:
    """One change of bytes: a stretch replaced, removed, repeated, or everything after it gone."""
    at = rng.randrange(len(content) + 1)
    end = at + rng.choice([0, 1, 1, 2, 8, 200])
    action = rng.randrange(5)
    if action == 0:
        return content[:at]
    if action == 1:
        return content[:at] + content[at:end] * 3 + content[end:]
    middle = rng.choice([b"", rng.randbytes(rng.randrange(9)), rng.choice(BYTES), rng.choice(BYTES)])
    return content[:at] + middle + content[end:]


def dumped(document: Any) -> bytes:
    return json.dumps(document).encode()


def mutant(rng: random.Random, kind: str, i: int) -> bytes:
    """A valid file with one to four changes."""
    bytewise = rng.random() < 0.4
    changes = rng.choice([1, 1, 2, 4])
    if kind == "run":
        lines = run_file(i).splitlines()
        for _ in range(0 if bytewise else changes):
            at = rng.randrange(len(lines))
            document = bend(rng, [json.loads(lines[at])])
            lines[at] = dumped(document[0] if document else None)
        content = b"\n".join(lines) + b"\n"
    else:
        document = [copy.deepcopy(VERSION_1 if kind == "v1" else VERSION_2)]
        for _ in range(0 if bytewise else changes):
            document = bend(rng, document) if document else document
        content = dumped(document[0] if document else None)
    for _ in range(changes if bytewise else 0):
        content = damage(rng, content)
    return content


def plant(folder: Path, rng: random.Random) -> None:
    """Mutants of all kinds beside a good run."""
    small(folder)
    for i in range(FILES):
        kind = ("run", "run", "v2", "v1")[i % 4]
        name = f"cells/m{i:03}.jsonl" if kind == "run" else f"m{i:03}.json"
        (folder / MACHINE / name).write_bytes(mutant(rng, kind, i))


@pytest.mark.timeout(300)
def test_ten_thousand_mutated_files_are_read_without_harm(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    counted = refused = shown = 0
    for i in range(FOLDERS):
        folder = tmp_path / f"results{i}"
        plant(folder, rng)
        before = time.process_time()
        found = load(folder)
        assert time.process_time() - before < 20, f"a file of folder {i} of seed {SEED} takes long"
        rows = list(found.all_rows())
        assert {(row.contender, row.case) for row in rows} >= {("slow", "len1024"), ("fast", "len512")}
        for row in rows:
            ends = [end for metric in row.metrics.values() for end in (metric.value, *(metric.ci or ()))]
            curves = [x for curve in row.series.values() for point in curve for x in point]
            assert all(isinstance(x, (int, float)) and math.isfinite(x) for x in (*ends, *curves)), row
            assert (row.status == "ok") == bool(row.metrics), row
        if i % 5 == 0:
            json.loads(as_json(found), parse_constant=pytest.fail)
            as_csv(found).encode()
            as_markdown(found).encode()
            assert render(folder, tmp_path / f"site{i}").problems == found.problems
        counted += len(found.sources)
        shown += sum(row.contender.startswith("fast") for row in found.rows)
        refused += len({problem.path.partition(":")[0] for problem in found.problems})
    assert counted > FOLDERS * FILES * 0.2, "mutants that nobody reads test nothing"
    assert refused > FOLDERS * FILES * 0.2
    assert shown > FOLDERS * FILES * 0.1


def test_the_files_that_are_mutated_are_valid(tmp_path: Path) -> None:
    folder = small(tmp_path)
    (folder / MACHINE / "cells" / "m.jsonl").write_bytes(run_file(1))
    for name, document in (("v1", VERSION_1), ("v2", VERSION_2)):
        (folder / MACHINE / f"{name}.json").write_bytes(dumped(document))
    assert load(folder).problems == []
