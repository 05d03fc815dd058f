"""A track whose cells take a tenth of a second, without torch, written into a copy of the tree: for tests of runs."""

from __future__ import annotations

from pathlib import Path

CASES = ("n1000", "n2000")
CONTENDERS = ("added", "doubled", "shifted")

_TRACK = '''"""Doubling: which way of doubling is quickest?"""

from dataclasses import dataclass

import numpy as np

from archbench.checks import Tolerance, close_to
from archbench.track import Timing, Track


@dataclass(frozen=True)
class QuickCase:
    size: int

    slug = property(lambda self: f"n{self.size}")
    axes = property(lambda self: {"size": self.size})
    dtype = "fp64"
    threads = None

    def flops(self):
        return None

    def bytes_moved(self):
        return None


def inputs(case, seed, device):
    return (np.random.default_rng(seed).normal(size=case.size),)


TRACK = Track(
    name="quick",
    question="Which doubles best?",
    version="1",
    baseline="added",
    test_cases=(QuickCase(10),),
    bench_cases=(QuickCase(1000), QuickCase(2000)),
    make_inputs=inputs,
    gate=close_to(lambda case, x: 2 * x, lambda case: Tolerance(1e-12, 1e-12, "doubling is exact")),
    timing=Timing(budget_s=0.02, min_sample_s=1e-5),
)
'''
_CALLS = {"added": "x + x", "doubled": "2 * x", "shifted": "np.ldexp(x, 1)"}
_SUITE = '''"""Doubling."""

from archbench.harness.suite import Suite


class Quick(Suite):
    track = "quick"
'''


def contender(call: str, before: str = "") -> str:
    """The file of a contender: ``call`` is what it makes of ``x``, ``before`` runs while it is built."""
    lines = ['"""Doubles."""', "", "import os", "import signal", "import time", "from pathlib import Path", ""]
    lines += ["import numpy as np", "", "from archbench.track import Contender", "", "", "def build(case):"]
    lines += [f"    {line}" for line in (*before.splitlines(), f"return lambda x: {call}")]
    return "\n".join([*lines, "", "", "CONTENDER = Contender(build=build)", ""])


def add_quick_track(top: Path) -> None:
    """Write the track, its contenders and its suite into the tree at ``top``."""
    folder = top / "kernels" / "quick"
    folder.mkdir()
    (folder / "__init__.py").write_text(_TRACK)
    for name, call in _CALLS.items():
        (folder / f"{name}.py").write_text(contender(call))
    (top / "benchmarks" / "quick.py").write_text(_SUITE)
