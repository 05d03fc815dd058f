"""Metrics in words: what a name says to people, its number with the unit, and which metric a formula predicts.

A name is made of words and ends with its unit (``parameters_bytes``, ``first_step_s``) or with ``_share``, a part of a
whole that is told in percent. ``wire_formula_bytes`` is what a formula predicts of ``wire_bytes``; ``bubble_formula``
is of ``bubble_share``. A curve's name may say what it goes over: ``peak_bytes_over_batch``.
``static/numbers.js`` prints the same texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache

from archbench.cells import Metric
from archbench.formatting import quantity, significant
from archbench.training import SUFFIXES

SHARE = "_share"
FORMULA = "formula"


def words(name: str) -> str:
    """``first_step_s`` as "first step": the unit stands with the number."""
    suffix = next((end for end in SUFFIXES if name.endswith(end)), "")
    return name.removesuffix(suffix).replace("_", " ").strip() or name


def one(item: str) -> str:
    """``image`` as "an image": what a time is per."""
    return f"{'an' if item[0] in 'aeiou' else 'a'} {item}"


def many(item: str) -> str:
    """``token`` as "tokens"."""
    return {"matrix": "matrices"}.get(item, f"{item}s")


def is_share(name: str) -> bool:
    return name.endswith(SHARE)


def share_text(value: float) -> str:
    """``0.203`` as "20.3 %"."""
    return f"{significant(100 * value)} %"


def said(name: str, metric: Metric) -> str:
    """The number as people read it: "6.00 MiB", "20.3 %", "1.04"; a count is "12"."""
    if metric.unit != "ratio":
        return quantity(metric.value, metric.unit)
    if is_share(name):
        return share_text(metric.value)
    counted = metric.value.is_integer() and abs(metric.value) < 1e6
    return f"{metric.value:.0f}" if counted else quantity(metric.value, metric.unit)


def predictions(names: Iterable[str]) -> Mapping[str, str]:
    """By metric, the name of the one that holds what a formula predicts of it, among ``names``."""
    return _predictions(tuple(names))


@lru_cache(maxsize=512)
def _predictions(known: tuple[str, ...]) -> Mapping[str, str]:
    plain = [name for name in known if FORMULA not in _parts(name)]
    found = {}
    for name in known:
        wanted = [part for part in _parts(name) if part != FORMULA]
        of = [other for other in plain if _parts(other) == wanted]
        if FORMULA in _parts(name) and of:
            found[next((other for other in of if _ending(other) == _ending(name)), of[0])] = name
    return found


def _ending(name: str) -> str:
    return next((end for end in (*SUFFIXES, SHARE) if name.endswith(end)), "")


def _parts(name: str) -> list[str]:
    return name.removesuffix(_ending(name)).split("_")


def axes_of(curve: str) -> tuple[str, str]:
    """What a curve shows and over what: ``peak_bytes_over_batch`` as ("peak_bytes", "batch"); over steps without it."""
    value, _, over = curve.replace(" over ", "_over_").rpartition("_over_")
    return (value, words(over)) if value and over else (curve, "step")
