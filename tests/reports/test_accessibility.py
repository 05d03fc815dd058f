"""Everybody can read the board: axe finds nothing serious, contrast meets WCAG 2.2 AA, colour is never alone."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from browsing import Visit, needs_chromium, pages

CSS = (files("archbench.reports") / "static" / "board.css").read_text(encoding="utf-8")
TEXT = 4.5  # WCAG 2.2 AA for text, 3.0 for graphics and the edges of controls
GRAPHIC = 3.0
PAIRS = [
    *((name, ground, TEXT) for name in ("text", "soft", "accent") for ground in ("bg", "panel", "win")),
    *((name, ground, TEXT) for name in ("win-edge", "bad", "warn") for ground in ("bg", "win")),
    *((f"c{i}", "bg", TEXT) for i in range(7)),  # the names beside the lines are text
    *(("heat", f"{side}{step}", TEXT) for side in "fs" for step in range(1, 5)),
    ("heat", "panel", TEXT),
    ("on-text", "on", TEXT),
    *((f"c{i}", "panel", GRAPHIC) for i in range(7)),  # boxes of a timeline on their lane
    ("bar", "bg", GRAPHIC),
    ("win-edge", "win", GRAPHIC),
]


def palette(selector: str) -> dict[str, str]:
    """The custom properties of a rule of the style sheet."""
    body = re.search(re.escape(selector) + r"\s*\{(.*?)\}", CSS, re.DOTALL)
    assert body, selector
    return dict(re.findall(r"--([a-z0-9-]+):\s*(#[0-9a-f]{3,6})", body[1]))


def whole(colour: str) -> str:
    """``#fff`` as ``#ffffff``."""
    return colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])


def luminance(colour: str) -> float:
    digits = whole(colour).lstrip("#")
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


THEMES = {"light": ":root", "dark": ':root[data-theme="dark"]', "dark by preference": ':root:not([data-theme="light"])'}


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize(("name", "ground", "least"), PAIRS)
def test_contrast(theme: str, name: str, ground: str, least: float) -> None:
    colours = palette(THEMES[theme])
    assert contrast(colours[name], colours[ground]) >= least, (colours[name], colours[ground])


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("kind", range(7))
def test_what_is_written_into_a_hatched_box_can_be_read(theme: str, kind: int) -> None:
    colours = palette(THEMES[theme])
    opacity = re.search(r"\.hatch \{ stroke: var\(--text\);.*? opacity: (\.\d+)", CSS)
    assert opacity
    lines = mixed(colours[f"c{kind}"], colours["text"], float(opacity[1]))
    for ground in (colours[f"c{kind}"], lines):
        assert contrast(colours["bg"], ground) >= TEXT, ground


def mixed(below: str, above: str, opacity: float) -> str:
    pairs = ((int(below[i : i + 2], 16), int(above[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a * (1 - opacity) + b * opacity):02x}" for a, b in pairs)


def test_both_ways_into_the_dark_theme_are_the_same() -> None:
    assert palette(THEMES["dark"]) == palette(THEMES["dark by preference"])
    assert palette(THEMES["dark"]).keys() == palette(THEMES["light"]).keys()


def test_contrast_knows_black_on_white() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21.0)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, site: Path, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    for path in pages(site):
        with Visit(browser, color_scheme=scheme, viewport={"width": 1280, "height": 900}) as visit:
            page = visit.open(path)
            found = axe.Axe().run(page).response["violations"]
            grave = [
                (v["id"], v["impact"], [n["html"][:150] for n in v["nodes"][:3]])
                for v in found
                if v["impact"] in ("serious", "critical")
            ]
            assert grave == [], path


@needs_chromium
def test_the_table_speaks_to_a_screen_reader_and_a_keyboard(browser: Any, site: Path) -> None:
    with Visit(browser) as visit:
        page = visit.open(site / "track" / "attention.html")
        assert page.locator("table.rows caption").count() == 1
        assert page.locator("#shown[aria-live=polite]").count() == 1
        heads = page.locator("table.rows thead th")
        assert all(heads.nth(i).get_attribute("aria-sort") for i in range(heads.count()))
        button = page.locator(".sorter[data-key=memory]")
        button.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.dataset.key") == "memory"
        assert page.locator("th[aria-sort=ascending] .sorter").get_attribute("data-key") == "memory"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "BUTTON"
        assert page.locator(".chip[aria-pressed]").count() == page.locator(".chip").count()
