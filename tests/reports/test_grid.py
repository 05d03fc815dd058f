"""The table of rows against what people type, name and hold: hashes, anchors, long names, phones, paper."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from archbench.cells import ContenderNote
from archbench.reports.grid import grid
from archbench.reports.rows import load
from archbench.reports.site import render
from browsing import Visit, needs_chromium, pages
from results_builder import MACHINE, cell, note, run, small, write

TRACK = Path("track") / "attention.html"
COMPARE = Path("compare") / "attention.html"
ALL = "26 of 26 rows"
LONG = "x" * 300


def look_at(page: Any) -> Any:
    """Scroll to the table: what nobody has looked at is not laid out."""
    page.locator("#grid").scroll_into_view_if_needed()
    return page


def heads(page: Any) -> list[str]:
    found: list[str] = page.locator("table.rows thead .sorter").evaluate_all("(all) => all.map((b) => b.dataset.key)")
    return found


@needs_chromium
@pytest.mark.parametrize(
    "state",
    ["s=constructor", "s=__proto__", "s=-toString,-", "p=constructor", "p=__proto__", "p=toString", "c=__proto__",
     "f.__proto__=own", "f.constructor=own", "q=%", "f.family=%25E0%25A4", "s=track"],
)  # fmt: skip
def test_a_hash_that_means_nothing_shows_all_rows(browser: Any, site: Path, state: str) -> None:
    with Visit(browser) as visit:
        page = look_at(visit.open(site / TRACK, f"#v=1&{state}"))
        page.locator("#shown", has_text="row").wait_for()
        assert visit.said == []
        assert "contender" in heads(page)
        page.locator("#clear").click()
        assert page.locator("#shown").inner_text() == ALL


@needs_chromium
def test_the_contender_stays_and_nothing_is_there_twice(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = look_at(visit.open(site / TRACK, "#v=1&c=rank,rank,time&s=time,-time,time&f.family=own,own"))
        assert heads(page) == ["rank", "contender", "time"]
        assert page.locator(".sorter sup").count() == 0
        page.locator("#clear").click()
        assert len(heads(page)) > 3


@needs_chromium
def test_an_anchor_keeps_the_view(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = look_at(visit.open(site / TRACK, "#v=1&q=fast"))
        before = page.locator("#shown").inner_text()
        assert before != ALL
        page.locator("a[href='#derivation']").click()
        page.wait_for_function("location.hash === '#derivation'")
        assert page.locator("#shown").inner_text() == before
        assert page.locator("#q").input_value() == "fast"
        page = look_at(visit.open(site / TRACK, "#grid-title"))
        page.reload()
        assert page.locator("#shown").inner_text() == ALL
    with Visit(browser) as visit:
        page = visit.open(site / COMPARE)
        page.locator("#swap").click()
        before = page.locator("#verdict").inner_text()
        page.evaluate("location.hash = '#main'")
        page.wait_for_timeout(50)
        assert page.locator("#verdict").inner_text() == before
        page.go_back()
        page.go_back()
        page.wait_for_function("(text) => document.getElementById('verdict').innerText !== text", arg=before)
        page = visit.open(site / COMPARE, "#main")
        page.reload()
        assert page.locator("#compared tbody tr").count() == 3


@needs_chromium
def test_a_phone_sorts_by_a_list(browser: Any, site: Path) -> None:
    with Visit(browser, viewport={"width": 390, "height": 844}) as visit:
        page = look_at(visit.open(site / TRACK, "#v=1&s=-time,case"))
        chosen = page.get_by_label("Sort", exact=True)
        assert chosen.locator("option:checked").inner_text() == "Time, descending, then Case, ascending"
        assert chosen.locator("option").first.inner_text() == "by rank"
        chosen.select_option("time")
        assert page.url.endswith("s=time")
        assert page.locator("table.rows tbody .name").first.inner_text() == "other"
        chosen.select_option("")
        assert "s=" not in page.url
        assert not page.locator(".sorter").first.is_visible()
        assert not page.get_by_text("sorts by a click").is_visible()
        page.go_back()
        page.wait_for_function("document.getElementById('sort').value === 'time'")
        reached = []
        chosen.focus()
        for _ in range(4):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.className"))
        assert "sorter" not in reached
    with Visit(browser, viewport={"width": 1440, "height": 900}) as visit:
        page = look_at(visit.open(site / TRACK))
        assert not page.get_by_label("Sort", exact=True).is_visible()
        assert page.get_by_text("sorts by a click").is_visible()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A board with names that are long or hold what separates the parts of a hash, and realistic cases."""
    folder = tmp_path_factory.mktemp("odd")
    described = note(**{"a|b,c": ContenderNote("Odd.", family="fam,ily"), LONG: ContenderNote("Long.")})
    slugs = ["b1-h16-kv2-len2048-d128-causal-fp32-fwdbwd", "b4-h16-kv2-len4096-d128-causal-bf16-fwd"]
    records = [run(), described]
    for slug in slugs:
        records += [cell(name, 1.0 + i / 9, slug) for i, name in enumerate(("base", "a|b,c", LONG, "manual_backward"))]
        records += [cell("cuda", case=slug, status="unsupported", reason="needs a GPU with compute capability 8.0")]
    write(folder / "results", records)
    render(folder / "results", folder / "site")
    return folder / "site"


@needs_chromium
@pytest.mark.parametrize("width", [390, 1440])
def test_the_table_fits_with_long_names_and_cases(browser: Any, odd: Path, width: int) -> None:
    with Visit(browser, viewport={"width": width, "height": 900}) as visit:
        page = look_at(visit.open(odd / TRACK))
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for box in ("#grid .scroll", ".board .scroll:has(.standings)"):
            wide, seen = page.locator(box).evaluate("(box) => [box.scrollWidth, box.clientWidth]")
            assert wide <= seen, box
        assert page.locator("td.repeat button").first.is_visible()


@needs_chromium
@pytest.mark.parametrize("width", [390, 1440])
def test_a_long_name_widens_no_page(browser: Any, odd: Path, width: int) -> None:
    with Visit(browser, viewport={"width": width, "height": 900}) as visit:
        for path in pages(odd):
            page = visit.open(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            for wide, seen in page.locator("#grid .scroll").evaluate_all(
                "(all) => all.map((box) => [box.scrollWidth, box.clientWidth])"
            ):
                assert wide <= seen, path


@needs_chromium
def test_names_with_separators_survive_the_hash(browser: Any, odd: Path) -> None:
    with Visit(browser) as visit:
        page = look_at(visit.open(odd / TRACK))
        page.locator("[data-facet=family][data-value='fam,ily']").click()
        assert page.locator("#shown").inner_text() == "2 of 10 rows"
        page.reload()
        assert page.locator("#shown").inner_text() == "2 of 10 rows"
        page.locator("#q").fill("nobody is called so")
        assert page.locator("#shown").inner_text() == "No row matches; Clear shows all."
        page = visit.open(odd / COMPARE)
        page.locator("[data-side=b][data-part=contender]").select_option("a|b,c")
        page.reload()
        assert page.locator("[data-side=b][data-part=contender]").input_value() == "a|b,c"


@needs_chromium
def test_the_saved_view_does_not_claim_the_schema_of_the_export(browser: Any, site: Path) -> None:
    with Visit(browser, accept_downloads=True) as visit:
        page = look_at(visit.open(site / TRACK))
        with page.expect_download() as started:
            page.locator("[data-save=json]").click()
        saved = json.loads(started.value.path().read_text(encoding="utf-8"))
        assert saved.keys() == {"view", "rows"}
        assert saved["view"] is True


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_paper_is_light(browser: Any, site: Path, scheme: str) -> None:
    with Visit(browser, color_scheme=scheme) as visit:
        page = visit.open(site / TRACK)
        for _ in range(2):
            page.locator("#theme").click()
            page.emulate_media(media="print")
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
            page.emulate_media(media="screen")


@needs_chromium
def test_explore_has_a_legend(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(site / "explore.html")
        page.locator("#explore svg").wait_for()
        named = page.locator("#explore .role-legend-label text").all_text_contents()
        assert {"base", "fast", "slow", "other"} <= set(named)
        assert visit.said == []


def test_strips_are_scaled_over_the_rows_that_are_ranked(tmp_path: Path) -> None:
    rows = load(small(tmp_path)).rows
    found = grid("all", rows, {})
    low, high = found.data["strip"]
    assert 0.4 < low < 0.5  # fast takes 0.5; other, of another function, 0.1
    assert 3.0 < high < 3.5
    strips = {line.row.contender: line.strip for line in found.lines}
    assert strips["other"] == (0.0, 0.0, 0.0)
    only = [row for row in rows if row.contender == "other"]
    assert grid("other", only, {}).data["strip"][0] < 0.1  # nobody else to make room for


def test_one_row_is_not_called_rows(tmp_path: Path) -> None:
    write(tmp_path / "results", [run(), note(), cell("base")])
    render(tmp_path / "results", tmp_path / "site")
    text = (tmp_path / "site" / TRACK).read_text(encoding="utf-8")
    assert "The one row as CSV" in text
    assert ">1 row<" in text
    assert MACHINE in text
