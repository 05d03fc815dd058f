"""``archbench machine``: the two tables."""

from __future__ import annotations

import io
from collections.abc import Callable

import msgspec
from rich.console import Console
from rich.table import Table

from archbench.cells import Ceiling
from archbench.hardware.detect import Host
from archbench.hardware.gpu import Gpu
from archbench.hardware.profiles import profiles
from archbench.hardware.report import machine_tables


def printed(table: Table) -> str:
    text = io.StringIO()
    Console(file=text, width=140).print(table)
    return text.getvalue()


def test_facts_are_shown_with_their_units(recorded: Callable[[str], Host]) -> None:
    gpu = Gpu(name="X", uuid="GPU-0", card_uuid="GPU-0", driver="580", clock_max_hz=1.98e9, power_limit_w=700.0)
    host = msgspec.structs.replace(recorded("raspberry-pi-5"), gpus=(gpu,))
    facts, _ = machine_tables(host, "raspberry-pi-5-8gb", [], profiles()["raspberry-pi-5"])
    shown = printed(facts)
    for words in (
        "raspberry-pi-5-8gb",
        "7.86 GiB",
        "1.98 GHz",
        "700 W",
        "NEON, FP16, dotprod",
        "introducing-raspberry",
    ):
        assert words in shown
    assert "GPU-0" not in shown


def test_a_gpu_that_is_not_used_says_why(recorded: Callable[[str], Host]) -> None:
    gpu = Gpu(name="X", uuid="GPU-0", card_uuid="GPU-0", driver="580", cuda_version="1.0")
    host = msgspec.structs.replace(recorded("epyc-zen4"), gpus=(gpu,))
    facts, _ = machine_tables(host, "x", [], None)
    shown = printed(facts)
    assert "the GPU is not used" in shown
    assert "none matches" in shown


def test_ceilings_stand_beside_the_datasheet(recorded: Callable[[str], Host]) -> None:
    found = [
        Ceiling("matrix", 4e14, "op/s", dtype="bf16", datasheet=8e14, measured="2026-01-31T12:00:00+00:00"),
        Ceiling("copy", 2e10, "B/s", threads=2, measured="2026-01-31T12:00:00+00:00"),
    ]
    _, measured = machine_tables(recorded("epyc-zen4"), "x", found, None)
    assert list(measured.columns[5].cells) == ["50%", ""]
    shown = printed(measured)
    assert "400 Top/s" in shown
    assert "measured 2026-01-31T12:00:00+00:00" in shown
    assert "copy and read of a CPU use buffers of" in shown
