"""Each page of docs/derivations and the tests of its equations are held together, and all its mathematics renders."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from archbench.discovery import load_track, track_modules
from archbench.harness import session

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(path for path in (ROOT / "docs" / "derivations").glob("*.md") if path.stem != "README")


def tags(page: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\\tag\{(\d+)\}", page.read_text(encoding="utf-8"))]


def tracks_of(page: Path) -> list[str]:
    """Tracks whose board page shows it."""
    return [name for name in track_modules() if (load_track(name).derivation or name) == page.stem]


@pytest.fixture(params=PAGES, ids=lambda path: path.stem)
def page(request: pytest.FixtureRequest) -> Path:
    found: Path = request.param
    return found


def test_a_page_belongs_to_a_track(page: Path) -> None:
    assert tracks_of(page)


def test_a_track_names_a_page_that_is_there() -> None:
    named = {name: load_track(name).derivation for name in track_modules()}
    stems = {page.stem for page in PAGES}
    assert {name: stem for name, stem in named.items() if stem and (stem not in stems or stem == name)} == {}


def test_a_run_records_it_with_each_of_its_tracks(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "describe", lambda track: {})  # contenders are another matter, and take seconds
    for name in tracks_of(page):
        assert session.track_note(name, page.parent).derivation == page.read_text(encoding="utf-8")


def test_its_equations_are_numbered_without_a_gap(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tags(page) == list(range(1, text.count("$$") // 2 + 1))
    prose = re.sub(r"\$\$.*?\$\$|\$.*?\$", "", text, flags=re.DOTALL)
    assert {int(number) for number in re.findall(r"\((\d+)\)", prose)} <= set(tags(page))


def test_every_equation_has_exactly_one_test(page: Path) -> None:
    tested: Counter[int] = Counter()
    files = [path for name in tracks_of(page) for path in (ROOT / "tests").glob(f"*/{name}/test_derivation*.py")]
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (match := re.match(r"test_equation_(\d+)_", node.name)):
                tested[int(match[1])] += 1
    assert tested == Counter(tags(page))


def test_all_its_mathematics_renders(page: Path) -> None:
    pytest.importorskip("latex2mathml", reason="no latex2mathml installed to render LaTeX with")
    pytest.importorskip("mdit_py_plugins", reason="no mdit-py-plugins installed to render pages with")
    from archbench.reports.markup import markup

    text = page.read_text(encoding="utf-8")
    displays = [line for line in text.splitlines() if "$$" in line]
    assert all(re.fullmatch(r"\$\$ [^$]+ \\tag\{\d+\} \$\$", line) for line in displays)
    inline = re.findall(r"\$([^$]+)\$", "\n".join(line for line in text.splitlines() if "$$" not in line))
    html = markup(text)
    assert html.count('class="tag"') == len(displays)
    assert html.count("<math") == len(displays) + len(inline)
    assert 'class="tex"' not in html, "a formula is shown as its source"
    assert "\\" not in html, "a command latex2mathml does not know"
