"""The seal: what the harness, the track and the baseline stand on must be left as it was found."""

from __future__ import annotations

import builtins
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from archbench import checks
from archbench.checks import Wrong
from archbench.hardware import clock, timers
from archbench.harness import gate, protocols
from archbench.harness.gate import Examiner
from archbench.harness.seal import Seal
from toy_track import TRACK, ToyCase, honest, measured


def test_changing_a_global_setting_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the global settings are torch's")
    threads = torch.get_num_threads()

    def build(case: ToyCase) -> Callable[..., Any]:
        torch.set_default_dtype(torch.float64)
        return honest

    try:
        cell = measured(monkeypatch, build)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    assert cell.status == "wrong"
    assert "default_dtype" in cell.reason


def sleepy(case: ToyCase, x: Any) -> Any:
    return x


REPLACED = {
    "archbench.harness.gate.Examiner.judge": (Examiner, "judge", lambda *_: 0.0),
    "archbench.harness.gate.same": (gate, "same", lambda *_: True),
    "archbench.harness.gate.max": (gate, "max", lambda *_: 0.0),  # a global that hides a builtin
    "archbench.hardware.timers.perf_counter_ns": (timers, "perf_counter_ns", lambda: 0),
    "archbench.hardware.timers.CpuTimer.sample": (timers.CpuTimer, "sample", sleepy),
    "archbench.hardware.clock.LATE_SHARE": (clock, "LATE_SHARE", 1e9),
    "archbench.checks.compare": (checks, "compare", lambda *_: 0.0),
    "time.monotonic": (time, "monotonic", lambda: 0.0),
    "numpy.argmax": (np, "argmax", lambda *_: 0),
    "builtins.max": (builtins, "max", max.__call__),
}


@pytest.mark.parametrize("when", ["built", "called"])
@pytest.mark.parametrize("name", REPLACED)
def test_who_replaces_what_the_harness_stands_on_is_wrong(
    monkeypatch: pytest.MonkeyPatch, name: str, when: str
) -> None:
    owner, attribute, other = REPLACED[name]

    def build(case: ToyCase) -> Callable[..., Any]:
        def tamper() -> None:
            monkeypatch.setattr(owner, attribute, other, raising=False)

        def call(x: Any) -> Any:
            tamper()
            return 2 * x

        if when == "called":
            return call
        tamper()
        return honest

    cell = measured(monkeypatch, build)
    monkeypatch.undo()
    assert (cell.status, cell.metrics, cell.duel) == ("wrong", {}, None)
    assert f"replaced {name}" in cell.reason


def test_the_code_of_a_function_may_not_be_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(case: ToyCase) -> Callable[..., Any]:
        monkeypatch.setattr(gate.same, "__code__", (lambda a, b: True).__code__)
        return honest

    cell = measured(monkeypatch, build)
    monkeypatch.undo()
    assert cell.status == "wrong"
    assert "archbench.harness.gate.same" in cell.reason


def test_a_table_of_the_harness_may_not_be_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(case: ToyCase) -> Callable[..., Any]:
        monkeypatch.setitem(protocols.PROTOCOLS, "duel", lambda setting: None)
        return honest

    cell = measured(monkeypatch, build)
    assert cell.status == "wrong"
    assert "archbench.harness.measure.PROTOCOLS" in cell.reason


def test_a_track_may_not_be_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("toy")
    module.TRACK = replace(TRACK)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy", module)
    seal = Seal("toy")
    seal.check()
    object.__setattr__(module.TRACK, "gate", lambda *_: 0.0)
    with pytest.raises(Wrong, match=r"^replaced toy\.TRACK\.gate$"):
        seal.check()


def test_what_a_module_may_keep_is_no_cheat(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("toy")
    exec("import math\ncount, cache = 0, {}\nLIMIT, TABLE = 3, {'a': 1}\ndef ask(): return LIMIT", module.__dict__)
    monkeypatch.setitem(sys.modules, "toy", module)
    seal = Seal("toy")
    module.count = 1  # type: ignore[attr-defined]
    module.cache["x"] = 1
    module.compile = types.ModuleType("toy.compile")  # type: ignore[attr-defined] # a contender named like a builtin
    seal.check()
    module.TABLE["a"] = 2
    with pytest.raises(Wrong, match=r"^replaced toy\.TABLE$"):
        seal.check()


@pytest.mark.parametrize(
    ("key", "switch"),
    [
        ("the flash backend of SDPA", "torch.backends.cuda.enable_flash_sdp(False)"),
        ("torch.backends.mkldnn.enabled", "torch.backends.mkldnn.enabled = False"),
        ("torch.get_default_device()", "torch.set_default_device('meta')"),
        ("torch.get_num_threads()", "torch.set_num_threads(torch.get_num_threads() + 1)"),
        ("autocast on cpu", "torch.set_autocast_enabled('cpu', True)"),
        ("torch.nn.functional.scaled_dot_product_attention", "F.scaled_dot_product_attention = print"),
        ("torch.Tensor.double", "torch.Tensor.double = print"),
    ],
)
def test_torch_must_be_left_as_it_was(key: str, switch: str) -> None:
    pytest.importorskip("torch", reason="the switches are torch's")
    code = f"""
import torch, torch.nn.functional as F
from archbench.discovery import load_contender
from archbench.harness.seal import Seal
from archbench.checks import Wrong
load_contender("attention", "torch_sdpa")
seal = Seal("archbench.kernels.attention")
seal.check()
{switch}
try:
    seal.check()
except Wrong as wrong:
    print(wrong)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert key in done.stdout
