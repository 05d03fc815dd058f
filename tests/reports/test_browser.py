"""The rendered pages in a real browser: nothing is fetched, nothing overflows a phone, the view is in the URL."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from archbench import formatting
from archbench.cells import ContenderNote
from archbench.reports.archive import EMPTY
from archbench.reports.export import as_dict, as_markdown, csv_of
from archbench.reports.grid import percent
from archbench.reports.rows import load
from archbench.reports.site import render
from browsing import Visit, needs_chromium, pages
from results_builder import MACHINE, cell, note, run, write

pytestmark = needs_chromium
ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = Path(os.environ.get("ARCHBENCH_SCREENSHOTS", ROOT / ".screenshots"))  # for a person to look at
TRACK = Path("track") / "attention.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_page_fits_asks_for_nothing_and_says_nothing(browser: Any, site: Path, scheme: str, width: int) -> None:
    kinds = {path.relative_to(site).parts[0] for path in pages(site)}
    assert kinds == {
        "index.html", "changes.html", "method.html", "status.html", "track", "contender", "compare", "history",
        "machine", "benchmark", "explore.html",
    }  # fmt: skip
    for path in pages(site):
        with Visit(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as visit:
            page = visit.open(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert visit.asked == [path.as_uri()]
            assert visit.said == [], path
            name = "-".join(path.relative_to(site).with_suffix("").parts)
            page.screenshot(path=SCREENSHOTS / f"{name}-{width}-{scheme}.png", full_page=True)


def test_every_link_of_every_page_leads_somewhere(browser: Any, site: Path) -> None:
    for path in pages(site):
        with Visit(browser) as visit:
            page = visit.open(path)
            for address in page.evaluate("[...document.querySelectorAll('a')].map((a) => a.href)"):
                if address.startswith("file:"):
                    target, _, fragment = address.removeprefix("file://").partition("#")
                    assert Path(target).is_file(), (path, address)
                    if fragment and target == str(path):
                        assert page.locator(f"[id='{fragment}']").count() == 1, (path, address)


def test_without_javascript_every_row_and_command_is_there(browser: Any, site: Path) -> None:
    with Visit(browser, java_script_enabled=False) as visit:
        page = visit.open(site / TRACK)
        assert page.locator("table.rows tbody tr:visible").count() == 26
        assert page.get_by_text("archbench run attention/fast --case len128", exact=True).first.is_visible()
        assert not page.locator("#grid-tools").is_visible()
        assert page.locator("svg[aria-label='Time over length']").first.is_visible()
        assert page.locator("#derivation math").count() == 2
        page = visit.open(site / "compare" / "attention.html")
        assert page.locator("#compared tbody tr").count() == 3


def look_at_the_table(page: Any) -> Any:
    """Scroll to it: what nobody has looked at is not laid out, so it has no text to see."""
    page.locator("#grid").scroll_into_view_if_needed()
    return page


def texts(page: Any) -> list[list[str]]:
    """Rows as a reader sees them, cell by cell."""
    script = "[...document.querySelectorAll('table.rows tbody tr')].map((tr) => [tr.className.trim(), ...[...tr.cells].map((c) => c.textContent.replace(/\\s+/g, ' ').trim())])"  # noqa: E501
    found: list[list[str]] = page.evaluate(script)
    return found


def test_the_script_draws_the_rows_that_are_html(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = look_at_the_table(visit.open(site / TRACK))
        html = texts(page)
        page.locator(".chip[data-preset=exact]").click()
        page.locator(".chip[data-preset=exact]").click()
        assert [[cell.removeprefix("Copy") for cell in row] for row in texts(page)] == [
            [cell.removeprefix("Copy") for cell in row] for row in html
        ]


def test_the_script_prints_numbers_as_python_does(browser: Any, site: Path) -> None:
    rng = random.Random(1)
    values = [10 ** rng.uniform(-9, 16) for _ in range(3000)] + [rng.randrange(1, 1 << 24) / 1024 for _ in range(3000)]
    values += [1.125, 2.5, 0.125, 1152.0, 1e-3, 999.5, 0.9995, 1e6, 123456789.0, 1023.9, 1024.0, 5e-324]
    with Visit(browser) as visit:
        page = look_at_the_table(visit.open(site / TRACK))
        script = (
            "(values) => values.map((x) => [numbers.significant(x), numbers.significant(x, 2), numbers.seconds(x),"
            " numbers.quantity(x, 'B'), numbers.quantity(x, 'J'), numbers.ratio(x, x, x)])"
        )
        got = page.evaluate(script, values)
        shares = [i / 800 for i in range(1000)]
        assert page.evaluate("(values) => values.map(numbers.percent)", shares) == [percent(x) for x in shares]
    f = formatting
    for x, row in zip(values, got, strict=True):
        plain = [f.significant(x), f.significant(x, 2), f.seconds(x)]
        assert row == [*plain, f.quantity(x, "B"), f.quantity(x, "J"), f.ratio(x, (x, x))]


def test_the_view_is_in_the_url_and_the_back_button_works(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = look_at_the_table(visit.open(site / TRACK))
        rows = page.locator("table.rows tbody tr")
        assert page.locator("#shown").inner_text() == "26 of 26 rows"
        page.locator(".chip[data-facet=length][data-value='512']").click()
        assert rows.count() == 8
        assert "f.length=512" in page.url
        page.locator("#q").fill("fast")
        assert rows.count() == 2
        page.locator(".chip[data-facet=machine]").first.click()
        assert rows.count() == 1
        shared = page.url
        page.go_back()
        page.wait_for_function("document.querySelectorAll('table.rows tbody tr').length === 2")
        with Visit(browser) as other:
            page = look_at_the_table(other.open(site / TRACK, "#" + shared.partition("#")[2]))
            assert page.locator("table.rows tbody tr").count() == 1
            page.locator("#clear").click()
            assert page.locator("table.rows tbody tr").count() == 26
            assert "#" not in page.url


def names(page: Any) -> list[str]:
    found: list[str] = page.locator("table.rows tbody th .name").all_text_contents()
    return found


def test_columns_sort_both_ways_and_several_at_once(browser: Any, site: Path) -> None:
    machine = f"&f.machine={MACHINE}"
    with Visit(browser) as visit:
        page = look_at_the_table(
            visit.open(site / TRACK, f"#v=1&s=-time,evil&p=nonsense&c=evil{machine}&evil=%3Cscript%3E")
        )
        assert names(page)[:3] == ["slow", "slow", "slow"]
        assert page.locator("th[aria-sort=descending]").text_content().startswith("Time")
        time = page.locator(".sorter[data-key=time]")
        time.press("Enter")  # a third press returns to the ranks
        assert names(page)[:3] == ["fast", "base", "slow"]
        assert "s=" not in page.url
        page.locator(".sorter[data-key=contender]").click()
        page.locator(".sorter[data-key=case]").click(modifiers=["Shift"])
        page.locator(".sorter[data-key=case]").click(modifiers=["Shift"])
        assert "s=contender%2C-case" in page.url
        first = page.locator("table.rows tbody tr").first
        assert first.locator("td[data-label=Case]").text_content() == "len1024"
        assert first.locator(".name").text_content() == "base"
        assert visit.said == []


def test_presets_and_columns_on_demand(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = look_at_the_table(visit.open(site / TRACK))
        page.locator(".chip[data-preset=family]").click()
        by_case = page.locator("table.rows tbody tr").count()
        assert by_case == 3 * 2 + 3 * 3  # own and torch on one machine; own, peer and torch on the other
        assert "other" not in names(page)
        page.locator(".chip[data-preset=here]").click()
        machines = page.locator("td[data-label=Machine]").all_inner_texts()
        assert set(machines) == {MACHINE}
        page.locator(".columns summary").click()
        page.locator("[data-column=error]").check()
        page.locator("[data-column=machine]").uncheck()
        heads = [text.split("\u2195")[0].strip() for text in page.locator("table.rows thead th").all_inner_texts()]
        assert "Error" in heads
        assert "Machine" not in heads
        assert page.locator("td[data-label=Error]").first.inner_text().endswith("1.0e-07")
        shared = page.url
        page = look_at_the_table(visit.open(site / TRACK, "#" + shared.partition("#")[2]))
        page.reload()
        assert page.locator("td[data-label=Error]").count() == len(machines)


@pytest.fixture(scope="module")
def results(site: Path) -> Any:
    return load(site.parent / "results")


def saved(page: Any, format: str) -> str:
    with page.expect_download() as started:
        page.locator(f"[data-save={format}]").click()
    text: str = started.value.path().read_text(encoding="utf-8")
    return text


def test_the_view_is_saved_with_the_numbers_of_the_export(browser: Any, site: Path, results: Any) -> None:
    with Visit(browser, accept_downloads=True) as visit:
        page = look_at_the_table(visit.open(site / TRACK, f"#v=1&f.machine={MACHINE}&f.length=512"))
        rows = json.loads(saved(page, "json"))["rows"]
        wanted = [r for r in results.rows if r.machine == MACHINE and r.case == "len512" and r.date.startswith("2026")]
        assert len(rows) == len(wanted) == 5
        dicts = {
            row.contender: {k: v for k, v in as_dict(row).items() if k not in ("host", "verified")} for row in wanted
        }
        assert {row["contender"]: row for row in rows} == dicts
        table = list(csv.DictReader(io.StringIO(saved(page, "csv"))))
        theirs = {line["contender"]: line for line in csv.DictReader(io.StringIO(csv_of(wanted)))}
        for line in table:
            other = theirs[line["contender"]]
            for key in other:
                same = line[key] == other[key] or float(line[key]) == float(other[key])
                assert same, (key, line[key], other[key])
        lines = saved(page, "md").splitlines()
        chosen = dataclasses.replace(results, rows=wanted, archive=EMPTY)
        assert sorted(lines) == sorted(as_markdown(chosen).splitlines())


def test_compare_any_two(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(site / "compare" / "attention.html")
        html = page.locator("#compared tbody tr").count()
        assert page.locator("#verdict").inner_text().startswith(f"fast against base on {MACHINE}: 3 faster, 0 slower")
        page.locator("[data-side=b][data-part=contender]").select_option("slow")
        assert page.locator("td.faster").count() == html == 3
        page.locator("#swap").click()
        assert page.locator("td.slower").count() == 3
        page.locator("[data-side=a][data-part=commit]").select_option("f" * 40)
        assert page.locator("#compared tbody tr").count() == 1
        page.locator("[data-side=a][data-part=machine]").select_option("nvidia-h100-sxm")
        assert "nothing is judged" in page.locator("#verdict").inner_text()
        shared = page.url
        assert visit.said == []
    with Visit(browser) as visit:
        page = visit.open(site / "compare" / "attention.html", "#" + shared.partition("#")[2])
        assert "nothing is judged" in page.locator("#verdict").inner_text()


def test_the_first_page_shows_machines_of_a_kind(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(site / "index.html")
        assert page.locator("section.machine:visible").count() == 2
        page.locator("[data-kind=gpu]").first.click()
        assert page.locator("section.machine:visible h2").all_inner_texts() == ["nvidia-h100-sxm"]
        assert "kind=gpu" in page.url
        page.go_back()
        page.wait_for_function("document.querySelectorAll('section.machine:not([hidden])').length === 2")


def test_the_toggle_changes_the_theme_and_the_copy_button_copies(browser: Any, site: Path) -> None:
    with Visit(browser, color_scheme="light", permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = look_at_the_table(visit.open(site / TRACK))
        colour = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(colour)
        page.locator("#theme").click()
        assert page.evaluate(colour) != before
        page.locator(".repeat .copy").first.click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()").startswith("archbench run attention/")


def test_rows_beyond_the_first_hundred_are_drawn_from_data(browser: Any, tmp_path: Path) -> None:
    records = [run(), note(lengths=range(1, 81))]
    records += [cell(f"c{i}", 1 + i / 10, f"len{n}") for n in range(1, 81) for i in range(5)]
    write(tmp_path / "results", records)
    render(tmp_path / "results", tmp_path / "site")
    with Visit(browser) as visit:
        page = look_at_the_table(visit.open(tmp_path / "site" / TRACK))
        rows = page.locator("table.rows tbody tr")
        assert rows.count() == 100
        page.locator("#more").click()
        assert rows.count() == 200
        page.locator("#q").fill("c4")
        assert rows.count() == 80
        assert page.locator("#more").is_hidden()
        assert visit.said == []
    with Visit(browser, java_script_enabled=False) as visit:
        page = look_at_the_table(visit.open(tmp_path / "site" / TRACK))
        assert page.locator("noscript").inner_text().startswith("300 more rows are in")
        table = page.locator("noscript a")
        assert len((tmp_path / "site" / "track" / table.get_attribute("href")).read_text().splitlines()) == 401


def test_no_script_of_a_result_file_runs(browser: Any, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script><svg onload=alert(3)>"
    described = note(**{evil: ContenderNote(evil, evil, evil, differs=evil)})
    records = [run(host={evil: evil}, environment=evil), described]
    records += [cell(evil, 1.0, evil), cell("base"), cell("dead", status="crashed", reason=evil)]
    records += [cell(f"{evil}{i}", 1.0, f"len{i}") for i in range(40)]
    write(tmp_path / "results", records)
    render(tmp_path / "results", tmp_path / "site")
    for path in pages(tmp_path / "site"):
        if path.parent.parent.name == "contender" and path.name[1] not in "0":
            continue  # they differ in nothing but their number
        with Visit(browser) as visit:
            page = visit.open(path)
            page.wait_for_timeout(50)
            if page.locator("#q").count():
                page.locator("#q").fill("img")
                page.locator("#clear").click()
            assert visit.said == [], path
            assert visit.asked == [path.as_uri()]
    assert (tmp_path / "site" / "machine" / f"{MACHINE}.html").exists()
