"""Rendering: one folder swapped in whole, unchanged files linked, changes remembered, the same input the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest

from archbench.cells import Metric
from archbench.reports import atomic
from archbench.reports.pages import track
from archbench.reports.rows import load
from archbench.reports.site import MARKER, RenderRefused, render
from archbench.reports.views import newest_commits, standings, track_board
from results_builder import MACHINE, cell, note, rich, run, small, write


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_rendering_again_makes_nothing_and_changes_nothing(tmp_path: Path) -> None:
    results, site = rich(tmp_path / "results"), tmp_path / "site"
    first = render(results, site)
    before = files(site)
    again = render(results, site)
    assert first.made > 15
    assert again.made == 0
    assert files(site) == before
    render(results, tmp_path / "elsewhere")
    assert files(tmp_path / "elsewhere") == before


def test_one_new_file_renders_only_what_it_touches(tmp_path: Path) -> None:
    results, site = rich(tmp_path / "results"), tmp_path / "site"
    full = render(results, site)
    inode = (site / "machine" / "nvidia-h100-sxm.html").stat().st_ino
    later = run(identity="20260109T030405Z-dddddd", started="2026-01-09T03:04:05+00:00")
    write(results, [later, note(), cell("slow", 5.0)])
    update = render(results, site)
    assert 0 < update.made <= full.made - 10
    assert (site / "machine" / "nvidia-h100-sxm.html").stat().st_ino == inode
    assert "5.00×" in (site / "contender" / "attention" / "slow.html").read_text()
    render(results, tmp_path / "whole")
    whole = files(tmp_path / "whole")
    told = {"changes.html", MARKER}  # they tell what this folder has seen
    assert {name: content for name, content in files(site).items() if name not in told} == {
        name: content for name, content in whole.items() if name not in told
    }


def test_a_file_of_the_old_board_that_was_edited_is_not_kept(tmp_path: Path) -> None:
    results, site = rich(tmp_path / "results"), tmp_path / "site"
    render(results, site)
    good = (site / "index.html").read_bytes()
    (site / "index.html").write_text("defaced")
    (site / "method.html").unlink()
    assert render(results, site).made == 2
    assert (site / "index.html").read_bytes() == good


def test_the_board_says_what_changed_since_it_was_rendered(tmp_path: Path) -> None:
    results, site = tmp_path / "results", tmp_path / "site"
    write(results, [run(), note(), cell("base"), cell("fast", 0.5)])
    render(results, site)
    assert "this is the first render" in (site / "changes.html").read_text()
    later = run(identity="20260202T030405Z-bbbbbb", commit="b" * 40, started="2026-02-02T03:04:05+00:00",
                commit_date="2026-02-01T00:00:00+00:00")  # fmt: skip
    write(results, [later, note(), cell("base"), cell("fast", 1.5)])
    render(results, site)
    text = (site / "changes.html").read_text()
    assert f"attention on {MACHINE}: first is base; it was fast" in text
    assert "base is now first, fast no longer; first: base" in text
    assert render(results, site).made == 0
    feed = ElementTree.fromstring((site / "feed.xml").read_bytes())
    atom = "{http://www.w3.org/2005/Atom}"
    (entry,) = feed.findall(f"{atom}entry")
    assert entry.findtext(f"{atom}title") == f"attention on {MACHINE}: base is now first, fast no longer; first: base"
    assert feed.findtext(f"{atom}updated") == "2026-02-02T03:04:05+00:00"


def test_the_address_of_a_published_board_is_in_its_feed_and_card(tmp_path: Path) -> None:
    results = rich(tmp_path / "results")
    render(results, tmp_path / "site", address="https://example.org/board/")
    assert 'href="https://example.org/board/feed.xml"' in (tmp_path / "site" / "feed.xml").read_text()
    picture = (tmp_path / "site" / "card.png").exists()
    assert ("https://example.org/board/card.png" in (tmp_path / "site" / "index.html").read_text()) == picture


def test_a_killed_render_leaves_the_old_board_and_no_litter_for_long(tmp_path: Path) -> None:
    results, site = rich(tmp_path / "results"), tmp_path / "site"
    render(results, site)
    before = files(site)
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from archbench.reports import site\n"
        "site.swap_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "site.render(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(results), str(site)], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert files(site) == before
    assert len(list(tmp_path.iterdir())) == 3
    render(results, site)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results", "site"]


@pytest.mark.parametrize("exchanges", [True, False])
def test_folders_swap(exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "what").write_text(name)
    atomic.swap_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "what").read_text() == "new"
    os.makedirs(tmp_path / "fresh")
    atomic.swap_folder(tmp_path / "fresh", tmp_path / "target")
    assert (tmp_path / "target").is_dir()
    shutil.rmtree(tmp_path / "target")


def test_points_without_a_number_are_on_the_status_page(tmp_path: Path) -> None:
    home = tmp_path / "results" / "box"
    home.mkdir(parents=True)
    (home / "machine.json").write_text('{"machine": "box", "version": 1}')
    results = '{"a.time_x": [[1.0, null, NaN, Infinity], [["1", "2", "3", "4"]]], "a.time_y": [[2.0], []]}'
    (home / "abc-env.json").write_text(
        '{"version": 2, "commit_hash": "abcdef12", "env_name": "env", "date": 1, "params": {"machine": "box"},'
        f' "result_columns": ["result", "params"], "results": {results}}}'
    )
    render(tmp_path / "results", tmp_path / "site")
    text = (tmp_path / "site" / "status.html").read_text()
    assert '<td class="num">1</td><td class="num">1</td><td class="num">1</td>' in text
    assert "a.time_y" not in text


def test_nothing_that_no_render_made_is_lost(tmp_path: Path) -> None:
    results, site = small(tmp_path / "results"), tmp_path / "site"
    render(results, site)
    for name in ("CNAME", ".git/config", "results/x.json"):
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        with pytest.raises(RenderRefused, match=f"holds '{name}', which no render made"):
            render(results, site)
        assert path.read_text() == "mine"
        path.unlink()
    shutil.copytree(results, site / "results", dirs_exist_ok=True)
    with pytest.raises(RenderRefused, match="the results lie in"):
        render(site / "results", site)
    assert load(site / "results").count == 16


def test_a_page_that_numbers_stop_is_a_problem_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> bytes:
        raise ZeroDivisionError("of a number nobody foresaw")

    monkeypatch.setattr(track, "_page", stopped)
    rendered = render(small(tmp_path / "results"), tmp_path / "site")
    (problem,) = rendered.problems
    assert problem.path == "track/attention.html"
    assert "of a number nobody foresaw" in (tmp_path / "site" / "status.html").read_text()
    assert (tmp_path / "site" / "contender" / "attention" / "fast.html").exists()


def test_a_case_of_one_contender_does_not_unrank_the_others(tmp_path: Path) -> None:
    write(tmp_path, [run(), note(), cell("base"), cell("fast", 0.5), cell("slow", 2.0), cell("fast", 0.1, "extra")])
    rows = load(tmp_path).rows
    table = {s.name: (s.place, s.coverage) for s in standings(rows)}
    assert table == {"fast": ("1", "1 of 1"), "base": ("2", "1 of 1"), "slow": ("3", "1 of 1")}
    assert "fast is the fastest of 3 contenders over 1 case," in track_board(rows, standings(rows)).sentence
    write(tmp_path, [run(), note(), cell("base")])
    rows = load(tmp_path).rows
    assert track_board(rows, standings(rows)).sentence == ""


def test_a_difference_within_the_noise_over_the_cases_ranks_nobody(tmp_path: Path) -> None:
    noisy = Metric(1.05, "ratio", (1.04, 1.06), 12)
    slowdowns = {"base": 1.0, "near": 1.03, "far": 1.5}
    cells = [cell(n, x, c, half=0.002, control=noisy) for n, x in slowdowns.items() for c in ("len128", "len512")]
    write(tmp_path, [run(), note(), *cells])
    assert {s.name: s.place for s in standings(load(tmp_path).rows)} == {"base": "1-2", "near": "1-2", "far": "3"}


def test_commits_are_ordered_by_time_whatever_their_zone(tmp_path: Path) -> None:
    for name, day, commit in (
        ("a", "2026-01-02T00:30:00+02:00", "a" * 40),
        ("b", "2026-01-01T23:00:00+00:00", "b" * 40),
    ):
        header = run(
            identity=f"20260105T000000Z-{name}", commit=commit, commit_date=day, started="2026-01-05T00:00:00Z"
        )
        write(tmp_path, [header, note(), cell("base")])
    rows = load(tmp_path).rows
    assert newest_commits(rows) == ["b" * 40, "a" * 40]
    assert {row.date for row in rows} == {"2026-01-01T22:30:00+00:00", "2026-01-01T23:00:00+00:00"}


def test_a_slowdown_without_an_interval_is_shown_and_not_ranked(tmp_path: Path) -> None:
    bare = {"latency_s": Metric(0.001, "s"), "slowdown": Metric(0.5, "ratio")}
    write(tmp_path / "results", [run(), note(), cell("base"), cell("bare", metrics=bare), cell("slow", 2.0)])
    render(tmp_path / "results", tmp_path / "site")
    assert {row.contender: row.rank for row in load(tmp_path / "results").rows}["bare"] is None
    text = (tmp_path / "site" / "track" / "attention.html").read_text()
    assert "nan" not in text.replace("nano", "")
    assert "inf)" not in text


def test_more_names_than_a_track_can_have_are_a_problem(tmp_path: Path) -> None:
    early = run(identity="20250101T000000Z-aaaaaa", started="2026-01-01T12:00:00+00:00")
    write(tmp_path, [early, note(), *(cell(f"c{i}") for i in range(550))])
    write(tmp_path, [run(), note(), cell("base"), cell("fast", 0.5)])
    found = load(tmp_path)
    assert len(found.rows) == 500
    assert {"base", "fast"} <= {row.contender for row in found.rows}  # a file full of names displaces no other's
    assert "52 cells beyond" in found.problems[0].reason


def test_a_page_says_what_its_times_are_per(tmp_path: Path) -> None:
    def pages(item: str) -> str:
        told = msgspec.structs.replace(note(), item=item)
        write(tmp_path / item, [run(), told, cell("naive")])
        return (render(tmp_path / item, tmp_path / f"site-{item}").index.parent / "track/attention.html").read_text()

    token, call = pages("token"), pages("call")
    assert "Times are per token." in token
    assert "median seconds a token" in token
    assert "Times are per" not in call
    assert "median seconds a call" in call


def test_a_page_says_which_obstacles_were_overruled(tmp_path: Path) -> None:
    forced = cell("naive", host={"forced": "governor: the cores run under ondemand"})
    write(tmp_path / "results", [run(), note(), forced, cell("base")])
    page = (render(tmp_path / "results", tmp_path / "site").index.parent / "track/attention.html").read_text()
    assert page.count("governor: the cores run under ondemand") == 1
