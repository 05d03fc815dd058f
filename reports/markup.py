"""Notes and derivations to HTML: CommonMark without raw HTML, formulas as MathML from an allow-list.

The text comes from result files, so nothing of it is trusted: markdown-it escapes it and refuses ``javascript:`` links,
pictures are off, and what ``latex2mathml`` makes of a formula is parsed and rebuilt from known elements and attributes
only, because that library does not escape. A formula that cannot be rendered is shown as its source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from xml.etree import ElementTree

from markdown_it import MarkdownIt
from markupsafe import Markup, escape

ELEMENTS = {
    "math", "mrow", "mi", "mn", "mo", "ms", "mtext", "mspace", "mfrac", "msqrt", "mroot", "msub", "msup", "msubsup",
    "munder", "mover", "munderover", "mtable", "mtr", "mtd", "mstyle", "mpadded", "mphantom", "menclose",
}  # fmt: skip
ATTRIBUTES: dict[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "display": r"block|inline",
        "mathvariant": r"[a-z-]{1,24}",
        "stretchy": r"true|false",
        "fence": r"true|false",
        "form": r"prefix|infix|postfix",
        "largeop": r"true|false",
        "movablelimits": r"true|false",
        "accent": r"true|false",
        "separator": r"true|false",
        "width": r"-?[0-9.]{1,8}(em|ex|px|%)?",
        "height": r"-?[0-9.]{1,8}(em|ex|px|%)?",
        "minsize": r"[0-9.]{1,8}(em|ex|%)?",
        "maxsize": r"[0-9.]{1,8}(em|ex|%)?",
        "lspace": r"[0-9.]{1,8}(em)?",
        "rspace": r"[0-9.]{1,8}(em)?",
        "linethickness": r"[0-9.]{1,8}(em|px)?",
        "columnalign": r"[a-z ]{1,40}",
        "rowspacing": r"[0-9.em ]{1,40}",
        "columnspacing": r"[0-9.em ]{1,40}",
        "displaystyle": r"true|false",
        "scriptlevel": r"[+-]?[0-9]",
    }.items()
}
MAX_FORMULA = 4000
TAG = re.compile(r"\\tag\{([0-9A-Za-z.]{1,8})\}")
NAMESPACE = "{http://www.w3.org/1998/Math/MathML}"


def formula(latex: str, *, display: bool) -> Markup:
    """A formula as MathML, with the number of its ``\\tag`` beside it, or its escaped source where it has no MathML."""
    tag = TAG.search(latex)
    source = TAG.sub("", latex).strip()
    made = _mathml(source, display) if len(source) <= MAX_FORMULA else None
    if made is None:
        made = Markup('<code class="tex">{}</code>').format(source)
    if not display:
        return made
    number = Markup('<span class="tag" id="equation-{0}">({0})</span>').format(tag[1]) if tag else Markup("")
    return Markup('<div class="equation">{}{}</div>').format(made, number)


def _mathml(latex: str, display: bool) -> Markup | None:
    from latex2mathml import exceptions
    from latex2mathml.converter import convert

    own = tuple(
        found for found in vars(exceptions).values() if isinstance(found, type) and issubclass(found, Exception)
    )
    # The converter is a tolerant parser: on odd input it also falls over its own indices and recursion.
    odd = (ElementTree.ParseError, LookupError, TypeError, ValueError, AttributeError, RecursionError)
    refused: tuple[type[Exception], ...] = own + odd
    try:
        tree = ElementTree.fromstring(convert(latex, display="block" if display else "inline"))
    except refused:
        return None
    try:
        return Markup(_rebuilt(tree))
    except (_Foreign, RecursionError):
        return None


class _Foreign(Exception):
    """An element nobody expects in a formula."""


def _rebuilt(node: ElementTree.Element) -> str:
    name = node.tag.removeprefix(NAMESPACE)
    if name not in ELEMENTS:
        raise _Foreign(name)
    kept = "".join(
        f' {key}="{escape(value)}"'
        for key, value in sorted(node.attrib.items())
        if key in ATTRIBUTES and ATTRIBUTES[key].fullmatch(value)
    )
    inside = str(escape(node.text or "")) + "".join(_rebuilt(child) + str(escape(child.tail or "")) for child in node)
    return f"<{name}{kept}>{inside}</{name}>"


@cache
def _parser() -> MarkdownIt:
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def renderer(content: str, options: dict[str, Any]) -> str:
        return str(formula(content, display=bool(options.get("display_mode"))))

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.use(dollarmath_plugin, renderer=renderer, allow_labels=False, double_inline=False)
    return parser


def _shift(tokens: Sequence[Any], depth: int) -> None:
    """Headings of a note start below the page's own."""
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + depth)}"


def markup(text: str, *, depth: int = 2) -> Markup:
    """CommonMark with ``$...$`` and ``$$...$$`` as safe HTML; headings are moved ``depth`` levels down."""
    parser = _parser()
    environment: dict[str, Any] = {}
    tokens = parser.parse(text, environment)
    _shift(tokens, depth)
    render: Callable[..., str] = parser.renderer.render
    return Markup(render(tokens, parser.options, environment))
