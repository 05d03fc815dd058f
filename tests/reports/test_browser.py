"""The rendered pages in a real browser: no request leaves, nothing overflows a phone, the view is in the URL."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from archbench.cells import ContenderNote
from archbench.reports.site import render
from results_builder import MACHINE, cell, note, run, small, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        yield running
        running.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    render(small(folder / "results"), folder / "site")
    return folder / "site"


class Visit:
    """A page with everything it said and asked for."""

    def __init__(self, browser: Any, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))

    def open(self, path: Path, fragment: str = "") -> Any:
        self.page.goto(path.as_uri() + fragment)
        return self.page

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_every_page_fits_asks_for_nothing_and_says_nothing(browser: Any, site: Path, scheme: str, width: int) -> None:
    assert len(pages(site)) == 4
    for path in pages(site):
        with Visit(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as visit:
            page = visit.open(path)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            assert visit.asked == [path.as_uri()]
            assert visit.said == []


def test_without_javascript_every_row_and_command_is_there(browser: Any, site: Path) -> None:
    with Visit(browser, java_script_enabled=False) as visit:
        page = visit.open(site / "track" / "attention.html")
        assert page.locator("table.rows tbody tr:visible").count() == 16
        assert page.get_by_text("archbench run attention/fast --case len128", exact=True).is_visible()
        assert not page.locator("#filters").is_visible()
        assert page.locator("svg[aria-label='time over length']").is_visible()


def test_the_view_is_in_the_url_and_the_back_button_works(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(site / "track" / "attention.html")
        rows = page.locator("table.rows tbody tr:visible")
        assert page.locator("#shown").inner_text() == "16 of 16 rows"
        page.locator("select[name='f.length']").select_option("512")
        assert rows.count() == 5
        assert "f.length=512" in page.url
        page.locator("input[name=q]").fill("fast")
        assert rows.count() == 1
        shared = page.url
        page.go_back()
        page.wait_for_function("document.querySelector('#shown').textContent !== '1 of 16 rows'")
        with Visit(browser) as other:
            page = other.open(site / "track" / "attention.html", "#" + shared.partition("#")[2])
            assert page.locator("table.rows tbody tr:visible").count() == 1


def test_columns_sort_both_ways_and_say_so(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(site / "track" / "attention.html", "#v=1&sort=-time&evil=%3Cscript%3E")
        first = page.locator("section.case").first
        names = first.locator("table.rows").first.locator("tbody th .name")
        assert names.all_inner_texts()[:3] == ["slow", "base", "fast"]
        assert first.locator("th[aria-sort=descending]").first.inner_text().startswith("Time")
        button = first.locator(".sorter[data-key=time]").first
        button.click()  # a third click returns to the ranks
        assert names.all_inner_texts()[:3] == ["fast", "base", "slow"]
        assert "sort=" not in page.url
        button.press("Enter")
        button.press("Enter")
        assert names.all_inner_texts()[:3] == ["slow", "base", "fast"]
        assert "sort=-time" in page.url
        assert visit.said == []


def test_the_toggle_changes_the_theme_and_the_copy_button_copies(browser: Any, site: Path) -> None:
    with Visit(browser, color_scheme="light", permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.open(site / "track" / "attention.html")
        colour = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(colour)
        page.locator("#theme").click()
        assert page.evaluate(colour) != before
        page.locator(".copy").first.click()
        page.get_by_text("Copied").wait_for()


def test_rows_beyond_the_html_are_drawn_from_data(browser: Any, tmp_path: Path) -> None:
    records = [run(), note(lengths=range(1, 81))]
    records += [cell(f"c{i}", 1 + i / 10, f"len{n}") for n in range(1, 81) for i in range(5)]
    write(tmp_path / "results", records)
    render(tmp_path / "results", tmp_path / "site")
    with Visit(browser) as visit:
        page = visit.open(tmp_path / "site" / "track" / "attention.html")
        assert page.locator("table.rows tbody tr").count() == 400
        page.locator("input[name=q]").fill("c4")
        assert page.locator("table.rows tbody tr:visible").count() == 80
        assert visit.said == []


def test_no_script_of_a_result_file_runs(browser: Any, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script><svg onload=alert(3)>"
    records = [run(host={evil: evil}, environment=evil), note(**{evil: ContenderNote(evil, evil, evil, differs=evil)})]
    records += [cell(evil, 1.0, evil), cell("base"), cell("dead", status="crashed", reason=evil)]
    records += [cell(f"{evil}{i}", 1.0, f"len{i}") for i in range(400)]
    write(tmp_path / "results", records)
    render(tmp_path / "results", tmp_path / "site")
    for path in pages(tmp_path / "site"):
        with Visit(browser) as visit:
            page = visit.open(path)
            page.wait_for_timeout(100)
            assert visit.said == [], path
            assert visit.asked == [path.as_uri()]
    assert (tmp_path / "site" / "machine" / f"{MACHINE}.html").exists()
