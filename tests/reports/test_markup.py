"""Notes and derivations: CommonMark and formulas, and nothing of a result file is markup or a script."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from archbench.reports.markup import ATTRIBUTES, ELEMENTS, formula, markup

EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def test_text_headings_tables_and_formulas() -> None:
    html = markup(
        "# Title\n\nWith $x^2$ and `code`.\n\n$$ y = \\frac{a}{b} \\tag{3} $$\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    assert "<h3>Title</h3>" in html
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    assert '<span class="tag" id="equation-3">(3)</span>' in html
    assert "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>" in html
    assert "<td>2</td>" in html


@pytest.mark.parametrize("text", [
    EVIL, f"$\\text{{{EVIL}}}$", f"$$ {EVIL} $$", f"`{EVIL}`", f"# {EVIL}", "[x](javascript:alert(1))", f"![{EVIL}](x)",
    "$\\href{javascript:alert(1)}{x}$", f"[x](https://e.org '{EVIL}')", "$\\style{x}{y}$", f"|{EVIL}|\n|-|\n|{EVIL}|",
])  # fmt: skip
def test_hostile_text_stays_text(text: str) -> None:
    html = markup(text)
    assert "<script" not in html
    assert "<img" not in html
    assert 'href="javascript' not in html
    assert " onerror" not in re.sub(r"&lt;.*?&gt;", "", html)


def test_a_formula_without_mathml_is_shown_as_its_source() -> None:
    assert formula("\\frac{", display=False) == '<code class="tex">\\frac{</code>'
    assert formula("x" * 5000, display=False) == f'<code class="tex">{"x" * 5000}</code>'


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("\\{}^_&<>$x1 abfrctext\"'=()[]|~%#\n"), max_size=40))
def test_any_formula_gives_allowed_elements_only(latex: str) -> None:
    html = formula(latex, display=True)
    for closing, name, attributes in re.findall(r"<(/?)([a-zA-Z]+)([^<>]*)>", html):
        assert name in ELEMENTS | {"code", "div", "span"}, latex
        if not closing and name in ELEMENTS:
            assert {key for key, _ in re.findall(r'([a-z]+)="([^"]*)"', attributes)} <= set(ATTRIBUTES)


def test_the_derivation_of_attention_renders_whole() -> None:
    from pathlib import Path

    text = (Path(__file__).resolve().parents[2] / "docs" / "derivations" / "attention.md").read_text(encoding="utf-8")
    html = markup(text)
    assert html.count('class="tag"') == text.count("\\tag{") > 40
    assert 'class="tex"' not in html
