"""Timelines, stacks and the instruments' table in a browser: readable on a phone, without a script, by everybody."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from archbench.reports.site import render
from browsing import Visit, needs_chromium
from results_builder import instruments

pytestmark = needs_chromium
SCREENSHOTS = Path(os.environ.get("ARCHBENCH_SCREENSHOTS", Path(__file__).resolve().parents[2] / ".screenshots"))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    render(instruments(folder / "results"), folder / "site")
    return folder / "site" / "track" / "training.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_fits_and_everybody_can_read_it(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with Visit(browser, viewport={"width": width, "height": 900}, color_scheme=scheme) as visit:
        page = visit.open(page_file)
        page.evaluate("document.documentElement.classList.add('whole')")  # all of it is laid out
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=SCREENSHOTS / f"pictures-{width}-{scheme}.png", full_page=True)
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert visit.asked == [page_file.as_uri()]
        assert visit.said == []
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"][:150]) for v in found if v["impact"] in ("serious", "critical")] == []


def test_without_a_script_the_pictures_and_their_tables_are_there(browser: Any, page_file: Path) -> None:
    with Visit(browser, java_script_enabled=False) as visit:
        page = visit.open(page_file)
        picture = page.locator("figure.picture", has_text="Timeline").first
        assert picture.locator("svg[role=img]").is_visible()
        assert picture.locator(".legend li").all_inner_texts() == ["forward", "backward", "update"]
        assert not picture.locator("table").is_visible()
        picture.locator("summary").click()
        first = picture.locator("tbody tr").first.locator("th, td").all_inner_texts()
        assert first == ["gpipe", "rank 0", "8.00 ms", "16.0 ms", "2.00 ms", "31.6 %"]


def test_boxes_are_painted_and_told_apart_without_colour(browser: Any, page_file: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(page_file)
        kinds = page.evaluate(
            "['k0', 'k1', 'k2', 'k3'].map((k) => getComputedStyle(document.querySelector('.boxes .' + k)).fill)"
        )
        assert kinds[0].startswith("rgb")
        assert [kind.split("#")[-1].rstrip('")') for kind in kinds[1:]] == ["k1", "k2", "k3"]
        drawings = page.locator("pattern path").evaluate_all("(all) => all.map((path) => path.getAttribute('d'))")
        assert len(set(drawings)) == len(drawings) == 6


def test_a_phone_shows_a_chart_whole_with_its_names_below(browser: Any, page_file: Path) -> None:
    inside = """(figure) => {
        const box = figure.querySelector('.scroll').getBoundingClientRect();
        const marks = figure.querySelectorAll('.scroll :is(g circle, g rect, g path, .tick:not(.odd))');
        return [...marks].every((mark) => {
            const at = mark.getBoundingClientRect();
            return at.left >= box.left - 1 && at.right <= box.right + 1;
        });
    }"""
    with Visit(browser, viewport={"width": 390, "height": 844}) as visit:
        page = visit.open(page_file)
        page.evaluate("document.documentElement.classList.add('whole')")
        chart = page.locator("figure.chart").first
        assert chart.evaluate(inside)
        named = chart.locator(".legend li").all_inner_texts()
        assert {name.strip() for name in named} == {"base", "single", "fsdp", "gpipe", "one_f_one_b", "tensor_parallel"}
        assert chart.locator(".legend").is_visible()
        for figure in page.locator("figure.chart").all():
            assert figure.evaluate(inside)
    with Visit(browser, viewport={"width": 1440, "height": 900}) as visit:
        page = visit.open(page_file)
        assert not page.locator("figure.chart .legend").first.is_visible()
        assert page.locator("figure.chart text.label", has_text="tensor_parallel").first.is_visible()


def test_the_status_of_a_row_says_its_numbers_in_words(browser: Any, page_file: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(page_file)
        page.locator("#grid").scroll_into_view_if_needed()
        texts = "[...document.querySelectorAll('table.rows .more .reason')].map((each) => each.textContent)"
        html = page.evaluate(texts)
        assert sum("bubble share 35.4 %" in text for text in html) == 2  # of both pipelines
        page.locator(".chip[data-preset=exact]").click()
        page.locator(".chip[data-preset=exact]").click()
        assert page.evaluate(texts) == html
