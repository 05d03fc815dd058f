"""``archbench machine``: the facts and the ceilings as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from archbench.cells import Ceiling, Scalar
from archbench.formatting import quantity
from archbench.hardware.ceilings import bandwidth_note
from archbench.hardware.detect import Host, why_not_cuda
from archbench.hardware.profiles import Profile

_UNITS = {"bytes": "B", "hz": "Hz", "w": "W"}  # the last word of a fact's key


def _shown(key: str, value: Scalar) -> str:
    unit = _UNITS.get(key.replace(".", "_").rpartition("_")[2])
    return quantity(value, unit) if unit and isinstance(value, (int, float)) else str(value)


def machine_tables(host: Host, name: str, ceilings: Sequence[Ceiling], profile: Profile | None) -> list[Table]:
    """Two tables: what was detected, and what was measured beside the datasheet's figure."""
    facts = Table(title=Text(name), title_justify="left", show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for key, value in host.facts().items():
        facts.add_row(Text(key), Text(_shown(key, value)))
    if host.gpus and why_not_cuda(host):
        facts.add_row("the GPU is not used", Text(why_not_cuda(host) or ""))
    facts.add_row("profile", Text(f"{profile.name} ({profile.source})" if profile else "none matches"))
    measured = Table(title="ceilings: the best this machine was measured to reach", title_justify="left")
    for column in ("what", "dtype", "threads"):
        measured.add_column(column)
    for column in ("measured", "datasheet", "share"):
        measured.add_column(column, justify="right")
    for c in ceilings:
        measured.add_row(
            c.name,
            c.dtype or "",
            str(c.threads or ""),
            quantity(c.value, c.unit),
            quantity(c.datasheet, c.unit) if c.datasheet else "",
            f"{c.value / c.datasheet:.0%}" if c.datasheet else "",
        )
    notes = [f"measured {min(c.measured for c in ceilings)}"] if ceilings else []
    if any(c.threads is not None for c in ceilings):
        notes.append(bandwidth_note(host))
    measured.caption, measured.caption_justify = "\n".join(notes), "left"
    return [facts, measured]
