"""A machine's page as data: what was detected, its ceilings beside the datasheet, its runs."""

from __future__ import annotations

from dataclasses import dataclass

from archbench.cells import Run, Scalar
from archbench.formatting import quantity
from archbench.reports.proofs import Proof
from archbench.reports.rows import Results


@dataclass(frozen=True)
class MachineView:
    """A machine's page."""

    name: str
    kind: str
    facts: list[tuple[str, str]]
    ceilings: list[tuple[str, str, str, str, str, str]]
    runs: list[Run]
    tracks: list[str]
    proofs: dict[str, Proof]  # by run


def machine_kind(results: Results, name: str) -> str:
    """``gpu``, ``board`` (a single-board computer) or ``cpu``, by the newest run's facts; empty where there is none."""
    runs = [run for run in results.runs if run.machine == name]
    if not runs:
        return ""
    if runs[-1].device == "cuda":
        return "gpu"
    return "board" if any(key.startswith("board.") for key in runs[-1].host) else "cpu"


def machine_view(results: Results, name: str) -> MachineView:
    """Facts and ceilings of the newest run on a machine; asv's own facts where there is no run of ours."""
    runs = [run for run in results.runs if run.machine == name]
    known = results.machines.get(name, {})
    facts: dict[str, Scalar] = {k: v for k, v in known.items() if isinstance(v, str) and k != "machine"}
    ceilings: list[tuple[str, str, str, str, str, str]] = []
    if runs:
        facts = {**runs[-1].host, "device": runs[-1].device, "profile": runs[-1].profile or ""}
        for c in runs[-1].ceilings:
            share = f"{c.value / c.datasheet:.0%}" if c.datasheet else ""
            sheet = quantity(c.datasheet, c.unit) if c.datasheet else ""
            threads = "" if c.threads is None else str(c.threads)
            ceilings.append((c.name, c.dtype or "", threads, quantity(c.value, c.unit), sheet, share))
    shown = [
        (key, quantity(value, "B") if key.endswith("bytes") and isinstance(value, int) else str(value))
        for key, value in facts.items()
        if value not in ("", None)
    ]
    tracks = sorted({row.track for row in results.rows if row.machine == name})
    proofs = {run: proof for (machine, run), proof in results.proofs.items() if machine == name}
    return MachineView(name, machine_kind(results, name), shown, ceilings, list(reversed(runs)), tracks, proofs)
