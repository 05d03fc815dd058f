"""Names that become files, folders and links: one rule, checked wherever a name comes from outside."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SLUG = re.compile(r"[a-z0-9._+-]{1,200}")
_SAFE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._+-]{0,98}[A-Za-z0-9_+-])?")


def is_safe_name(name: object) -> bool:
    """True for a name that may become a folder: no separators, no leading or trailing dot, at most 100 characters."""
    return isinstance(name, str) and _SAFE.fullmatch(name) is not None and ".." not in name


def is_module_name(name: str) -> bool:
    """True for what a contender may be called: it goes into commands, so nothing in it needs quoting."""
    return _MODULE.fullmatch(name) is not None


def is_slug(name: str) -> bool:
    """True for what a case may be called, for the same reason."""
    return _SLUG.fullmatch(name) is not None


def legible(text: str) -> str:
    """Free text with whatever could hide in it written out: a right-to-left override becomes ``\\u202e``.

    Line ends and tabs stay, odd spaces become plain ones. Names are not repaired: one that is not ``isprintable()``
    is refused, because two that look the same must not be two.
    """
    plain = text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable()
    return text if plain else "".join(_shown(c) for c in text)


def _shown(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return " " if unicodedata.category(character) == "Zs" else f"\\u{ord(character):04x}"


def slugify(text: str) -> str:
    """Lower-case letters, digits and single dashes: ``"Raspberry Pi 5 (8 GB)"`` becomes ``raspberry-pi-5-8-gb``."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name nobody knows, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}"
    return f"unknown {kind} {name!r}: {hint}"
