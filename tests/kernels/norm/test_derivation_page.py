"""docs/derivations/norm.md and the tests of its equations are held together, and all its mathematics renders."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "derivations" / "norm.md"


def page_tags() -> list[int]:
    return [int(number) for number in re.findall(r"\\tag\{(\d+)\}", PAGE.read_text(encoding="utf-8"))]


def test_the_page_numbers_its_equations_without_a_gap() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page_tags() == list(range(1, text.count("$$") // 2 + 1))
    prose = re.sub(r"\$\$.*?\$\$|\$.*?\$", "", text, flags=re.DOTALL)
    assert {int(number) for number in re.findall(r"\((\d+)\)", prose)} <= set(page_tags())


def test_every_equation_has_exactly_one_test() -> None:
    tested: Counter[int] = Counter()
    for path in Path(__file__).parent.glob("test_derivation*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (match := re.match(r"test_equation_(\d+)_", node.name)):
                tested[int(match[1])] += 1
    assert tested == Counter(page_tags())


def test_all_mathematics_of_the_page_renders() -> None:
    pytest.importorskip("latex2mathml", reason="no latex2mathml installed to render LaTeX with")
    pytest.importorskip("mdit_py_plugins", reason="no mdit-py-plugins installed to render pages with")
    from archbench.reports.markup import markup

    text = PAGE.read_text(encoding="utf-8")
    displays = [line for line in text.splitlines() if "$$" in line]
    assert all(re.fullmatch(r"\$\$ [^$]+ \\tag\{\d+\} \$\$", line) for line in displays)
    html = markup(text)
    assert html.count('class="tag"') == len(displays)
    assert html.count("<math") > len(displays) + 100
    assert 'class="tex"' not in html, "a formula is shown as its source"
    assert "\\" not in html, "a command latex2mathml does not know"
