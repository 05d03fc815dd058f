"""Other projects' benchmarks: quick and careful reading agree, no cache changes a number, pages show the history."""

from __future__ import annotations

import json
import math
import os
import random
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from archbench.reports import asv_reader, steps
from archbench.reports.asv_reader import Reader
from archbench.reports.asv_tree import parse
from archbench.reports.cache import place
from archbench.reports.load import Unreadable, read_json
from archbench.reports.meaning import check_asv
from archbench.reports.pages import benchmark
from archbench.reports.rows import Results, load
from archbench.reports.site import render

COLUMNS = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b", "stats_q_25",
           "stats_q_75", "stats_number", "stats_repeat", "samples", "profile"]  # fmt: skip
DAY_MS = 86_400_000


def asv_file(index: int = 0, results: dict[str, Any] | None = None, **changes: Any) -> str:
    """A file as asv 0.6 writes it, of the commit number ``index``."""
    default = {
        "m.time_a": [[0.5 + index, math.nan, None, 2], [["1", "2"], ["'x'", "'y'"]], "1", 1, 0.1,
                     [0.4, None, None, 1.5], [0.6, None, None, None], None, None, [1, None, None, 1],
                     [10, None, None, 3]],
        "m.track_b": [[-7], [], "1"],
    }  # fmt: skip
    data = {
        "commit_hash": f"{index:040x}", "env_name": "py3", "date": DAY_MS * (index + 1), "params": {"machine": "box"},
        "python": "3.11", "requirements": {}, "env_vars": {}, "result_columns": COLUMNS,
        "results": results or default, "durations": {}, "version": 2,
    }  # fmt: skip
    return json.dumps(data | changes)


def tree(folder: Path, files: dict[str, str], machine: str = "box") -> Path:
    home = folder / machine
    home.mkdir(parents=True, exist_ok=True)
    (home / "machine.json").write_text(json.dumps({"machine": machine, "version": 1}))
    for name, content in files.items():
        (home / name).write_text(content)
    return folder


def carefully(content: bytes) -> Any:
    """What ``parse`` makes of it, or why it does not count."""
    try:
        found = read_json(content)
        check_asv(content, found)
        return comparable(parse(found, "box"))
    except (Unreadable, ValueError) as error:
        return str(error)


def comparable(file: Any) -> Any:
    points = sorted(file.points(), key=lambda point: (point.benchmark, point.parameters))
    return file.commit, file.environment, file.date_ms, dict(file.params), points


def series_of(values: list[Any]) -> dict[str, Any]:
    return {"m.track_a": [values, [[str(i) for i in range(len(values))]], "1"]}


ODD = {
    "as asv writes it": asv_file(),
    "compact": json.dumps(json.loads(asv_file()), separators=(",", ":")),
    "indented": json.dumps(json.loads(asv_file()), indent=4),
    "a name with NaN": asv_file(results={"m.time_NaN": [[math.nan, 1.0], [["1", "2"]], "1"]}),
    "a text that is a list of NaN": asv_file(results={"m.time_x": [[1.0], [["[NaN, NaN]"]], "1"]}),
    "a text with NaN and spaces": asv_file(results={"m.time_x": [[math.nan], [["a NaN, NaN b"]], "1"]}),
    "the tokens as texts": asv_file(results=series_of(["  -inf", "  inf", "inf", math.nan, 1.0])),
    "infinite intervals": asv_file(
        results={"m.time_x": [[1.0, 2.0, math.nan], [["1", "2", "3"]], "1", 1, 1, [-math.inf, 1.0, math.nan],
                              [math.inf, 3.0, math.nan], None, None, None, [1, math.inf, math.nan]]}
    ),
    "a name with Infinity": asv_file(results={"m.Infinity": [[1.0], [], "1", 1, 1, [-math.inf], [math.inf]]}),
    "infinite facts": asv_file(params={"machine": "box", "ram": -math.inf}),
    "NaN as a parameter": asv_file(results={"m.time_x": [[1.0, 2.0], [[math.nan, 3]], "1"]}),
    "NaN as a fact": asv_file(params={"machine": "box", "ram": math.nan}),
    "NaN as environment": asv_file(env_name=math.nan),
    "infinite": asv_file(results=series_of([math.inf, -math.inf, 1.0])),
    "texts and lists": asv_file(results=series_of(["1.5", [1], True, {"a": 1}, 10**400, 10**20, 2**53 + 1])),
    "numbers of all kinds": asv_file(results=series_of([0.1, 1e-320, 1e308, 123456789.123456789, -0.0, 3])),
    "half an interval": asv_file(results={"m.time_x": [[1.0], [], "1", 1, 1, [0.5], [math.inf]]}),
    "short statistics": asv_file(results={"m.time_x": [[1.0, 2.0], [["1", "2"]], "1", 1, 1, [0.5], [1.5]]}),
    "odd counts": asv_file(results={"m.time_x": [[1.0], [], "1", 1, 1, None, None, None, None, None, [0.5]]}),
    "fewer columns": asv_file(result_columns=["result", "params"], results={"m.time_x": [[1.0], []]}),
    "columns in another order": asv_file(result_columns=["params", "result"], results={"m.time_x": [[], [math.nan]]}),
    "a negative time": asv_file(results={"m.time_x": [[-1.0], [], "1"]}),
    "not ASCII": asv_file(params={"machine": "box", "cpu": "µ"}).replace("\\u00b5", "µ"),
    "a printable escape": asv_file(params={"machine": "box", "cpu": "\u00b5"}),
    "a broken escape": asv_file().replace('"1"', '"\\uZZ"'),
    "backslashes": asv_file(results={"m.time_x": [[1.0, 2.0], [["'\\n'", '"\\"/\\u202e']], "1"]}),
    "an escape": asv_file(params={"machine": "box", "cpu": "\u202e"}),
    "a hidden character": asv_file(params={"machine": "box", "cpu": "x"}).replace('"x"', '"\u202e"'),
    "delete": asv_file(params={"machine": "box", "cpu": "\x7f"}),
    "another machine": asv_file(params={"machine": "other"}),
    "a date of tomorrow's century": asv_file(date=1e14),
    "no date": asv_file().replace('"date"', '"when"'),
    "a benchmark twice": asv_file().replace('"m.track_b": [[-7]', '"m.track_b": [[1]], "m.track_b": [[-7]'),
    "a malformed number in a skipped column": asv_file().replace("0.1", "01.1"),
    "too many values": asv_file(results={"m.time_x": [[1.0, 2.0], [], "1"]}),
    "a whole benchmark failed": asv_file(results={"m.time_x": [None, [["1", "2"]], "1"]}),
    "no benchmarks": asv_file(results={"m.time_x": [[], [[]], "1"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_the_quick_reading_is_the_careful_one(kind: str) -> None:
    content = ODD[kind].encode()
    try:
        found = comparable(Reader().read(content, "box"))
    except Unreadable as error:
        found = str(error)
    assert found == carefully(content)


QUICK = [
    "as asv writes it",
    "compact",
    "indented",
    "a name with NaN",
    "not ASCII",
    "a printable escape",
    "backslashes",
    "no date",
]


@pytest.mark.parametrize("kind", QUICK)
def test_a_file_of_today_is_read_the_quick_way(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asv_reader, "read_json", lambda _: pytest.fail("read the careful way"))
    assert len(Reader().read(ODD[kind].encode(), "box").value) > 0


def test_mutated_files_are_read_alike_or_refused_alike() -> None:
    rng, good = random.Random(7), asv_file().encode()
    pieces = [
        b"NaN",
        b'"',
        b"]",
        b"null",
        b"-",
        b"\\u0041",
        b"\\u",
        b"\\",
        b"1e999",
        b", ",
        b"Infinity",
        b'"-inf"',
        b"\xc3\xa9",
        b"0",
    ]
    reader = Reader()
    for _ in range(1500):
        content = bytearray(good)
        for _ in range(rng.randint(1, 2)):
            at = rng.randrange(len(content))
            content[at : at + rng.choice([0, 0, 1, 3, 9])] = rng.choice(pieces)
        try:
            found = comparable(reader.read(bytes(content), "box"))
        except Unreadable as error:
            found = str(error)
        expected = carefully(bytes(content)) if isinstance(json_or_none(content), dict) else found
        assert found == expected, bytes(content)


def json_or_none(content: bytes | bytearray) -> Any:
    try:
        return read_json(bytes(content))
    except Unreadable:
        return None


def numbers(results: Results) -> Any:
    """Everything of an archive, for comparison; NaN is equal to NaN."""
    return [repr(row) for row in results.all_rows()], results.problems, results.sources


def spoil_whole(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 400)


def spoil_entries(path: Path) -> None:
    with sqlite3.connect(path) as found:
        found.execute("UPDATE entries SET value = zeroblob(length(value))")
    found.close()


def spoil_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def spoil_schema(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as found:
        found.execute("CREATE TABLE other (x)")
    found.close()


def spoil_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [spoil_whole, spoil_entries, spoil_half, spoil_schema, spoil_by_folder])
def test_a_cold_warm_or_broken_cache_gives_the_same_numbers(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tree(tmp_path / "results", {f"{i}.json": asv_file(i) for i in range(6)} | {"bad.json": "{"})
    cold = numbers(load(folder))
    assert place(folder).is_file()
    assert numbers(load(folder)) == cold
    spoil(place(folder))
    assert numbers(load(folder)) == cold
    assert numbers(load(folder)) == cold


def test_a_warm_cache_is_used_and_a_locked_one_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree(tmp_path / "results", {f"{i}.json": asv_file(i) for i in range(3)})
    cold = numbers(load(folder))
    holder = sqlite3.connect(place(folder), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    assert numbers(load(folder)) == cold
    holder.close()
    load(folder)
    monkeypatch.setattr(Reader, "read", lambda *_: pytest.fail("read again"))
    assert numbers(load(folder)) == cold


def test_a_file_that_changed_under_the_same_name_size_and_time_is_read_again(tmp_path: Path) -> None:
    folder = tree(tmp_path / "results", {"0.json": asv_file()})
    path = folder / "box" / "0.json"
    load(folder)
    before = path.stat()
    path.write_text(path.read_text().replace("[0.5, ", "[0.7, "))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert load(folder).archive.value[0] == 0.7


def test_where_nothing_can_be_kept_everything_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made below a file
    assert load(tree(tmp_path / "results", {"0.json": asv_file()})).count == 5


def test_entries_of_files_that_are_gone_are_dropped(tmp_path: Path) -> None:
    folder = tree(tmp_path / "results", {f"{i}.json": asv_file(i) for i in range(4)})
    load(folder)
    for i in range(3):
        (folder / "box" / f"{i}.json").unlink()
    (folder / "box" / "9.json").write_text(asv_file(9))
    load(folder)
    with sqlite3.connect(place(folder)) as found:
        assert found.execute("SELECT count(*) FROM entries").fetchone() == (3,)  # two files and their layout
    found.close()


def test_points_are_ordered_by_the_date_of_their_commits_and_the_first_file_of_a_commit_counts(tmp_path: Path) -> None:
    files = {
        "a.json": asv_file(2),
        "b.json": asv_file(0),
        "c.json": asv_file(1),
        "d.json": asv_file(1, date=DAY_MS * 9),
    }
    archive = load(tree(tmp_path, files)).archive
    first = archive.series.index(("m.time_a", "box", "py3", ("1", "'x'")))
    assert archive.value[archive.slice(first)].tolist() == [0.5, 1.5, 2.5]
    assert [archive.sources[i].commit[-1] for i in archive.source[archive.slice(first)]] == ["0", "1", "2"]
    assert [name for name, _ in archive.by_benchmark()] == ["m.time_a", "m.track_b"]
    assert len(archive) == 15


def stepped(folder: Path, count: int = 40) -> Path:
    rng = random.Random(11)
    files = {}
    for i in range(count):
        level = 1e-3 if i < count / 2 else 1.5e-3
        values = [level * (1 + rng.gauss(0, 0.005)), 1e-3 * (1 + rng.gauss(0, 0.005)), math.nan]
        ends = [[v * f if v == v else None for v in values] for f in (0.99, 1.01)]
        row = [values, [["moves", "<b>stays</b>", "skipped"]], "1", 1, 1, *ends]
        files[f"{i:03}.json"] = asv_file(i, {"m.time_a": row, "index": [[i], [], "1"]})
    return tree(folder, files)


def test_the_page_of_a_benchmark_tells_newest_best_change_and_steps(tmp_path: Path) -> None:
    rendered = render(stepped(tmp_path / "results"), tmp_path / "site")
    assert rendered.problems == []
    page = (tmp_path / "site" / benchmark.benchmark_path("m.time_a")).read_text()
    moves, stays, skipped = re.findall('<tr><th scope="row">.*?</tr>', page, flags=re.S)
    assert f"1.50× at {20:040x}"[:14] in moves
    assert moves.count('class="step"') == 1
    assert "ms to " in moves
    assert "&lt;b&gt;stays&lt;/b&gt;" in stays
    assert 'class="step"' not in stays
    assert "skipped by the suite" in skipped
    assert "not examined" not in page
    listed = (tmp_path / "site" / benchmark.INDEX).read_text()
    assert 'href="m.time_a.html"' in listed
    assert "1.50×" in listed
    assert "160 values of 4 series" in listed


def test_a_benchmark_called_index_does_not_take_the_place_of_the_list(tmp_path: Path) -> None:
    render(stepped(tmp_path / "results", 3), tmp_path / "site")
    assert benchmark.benchmark_path("index") != benchmark.INDEX
    assert "<h1>index</h1>" in (tmp_path / "site" / benchmark.benchmark_path("index")).read_text()
    assert "<h1>Benchmarks</h1>" in (tmp_path / "site" / benchmark.INDEX).read_text()


def test_what_is_not_examined_or_not_shown_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "ALL", 0)
    monkeypatch.setattr(steps, "LEAST", 0)
    monkeypatch.setattr(benchmark, "MAX_ROWS", 2)
    render(stepped(tmp_path / "results"), tmp_path / "site")
    page = (tmp_path / "site" / benchmark.benchmark_path("m.time_a")).read_text()
    assert "here in 0 of 3" in page
    assert "about 1.50× at" in page
    assert "2 of 3 series are shown" in page


def test_a_new_file_makes_only_the_pages_of_its_benchmarks_anew(tmp_path: Path) -> None:
    folder = stepped(tmp_path / "results")
    first = render(folder, tmp_path / "site")
    assert render(folder, tmp_path / "site").made == 0
    (folder / "box" / "new.json").write_text(asv_file(99, {"index": [[5], [], "1"]}))
    again = render(folder, tmp_path / "site")
    assert again.rows == first.rows + 1
    other = tmp_path / "site" / benchmark.benchmark_path("m.time_a")
    assert other.stat().st_nlink == 1
    made = {benchmark.benchmark_path("index"), benchmark.INDEX, "index.html"}
    assert again.made <= len(made) + 1
    render(folder, tmp_path / "fresh")
    for path in (tmp_path / "fresh").rglob("*.html"):
        assert path.read_bytes() == (tmp_path / "site" / path.relative_to(tmp_path / "fresh")).read_bytes()
