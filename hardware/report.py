"""``archbench machine``: the facts and the ceilings as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from archbench.cells import Ceiling
from archbench.formatting import quantity
from archbench.hardware.detect import Host
from archbench.hardware.profiles import Profile


def machine_tables(host: Host, name: str, ceilings: Sequence[Ceiling], profile: Profile | None) -> list[Table]:
    """Two tables: what was detected, and what was measured beside the datasheet's figure."""
    facts = Table(title=name, title_justify="left", show_header=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for key, value in host.facts().items():
        facts.add_row(key, quantity(value, "B") if key.endswith("bytes") and isinstance(value, int) else str(value))
    facts.add_row("profile", f"{profile.name} ({profile.source})" if profile else "none matches")
    measured = Table(title="ceilings: the best this machine was measured to reach", title_justify="left")
    for column in ("what", "dtype", "threads"):
        measured.add_column(column)
    for column in ("measured", "datasheet", "share"):
        measured.add_column(column, justify="right")
    measured.add_column("when")
    for c in ceilings:
        measured.add_row(
            c.name,
            c.dtype or "",
            str(c.threads or ""),
            quantity(c.value, c.unit),
            quantity(c.datasheet, c.unit) if c.datasheet else "",
            f"{c.value / c.datasheet:.0%}" if c.datasheet else "",
            c.measured,
        )
    return [facts, measured]
