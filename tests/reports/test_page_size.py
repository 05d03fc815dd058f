"""A large leaderboard stays a small page: 2,000 rows and six charts fit into 150 KB gzipped."""

from __future__ import annotations

import gzip
import random
import re
from pathlib import Path

from archbench.cells import Metric
from archbench.reports.site import render
from results_builder import cell, note, run, write

LIMIT = 150_000
MACHINES = ("amd-epyc-zen4-2c", "intel-sapphire-rapids-2c", "nvidia-h100-sxm")
CASES, CONTENDERS = 48, 14  # 3 x 48 x 14 = 2016 rows


def large(folder: Path, copies: int = 1) -> Path:
    """2,016 rows times ``copies``, with numbers as random as measured ones are."""
    rng = random.Random(7)
    lengths = [64 * (1 + i) for i in range(CASES * copies)]
    for k, machine in enumerate(MACHINES):
        records = [run(machine, identity=f"2026010{k + 1}T000000Z-{k:06x}"), note(lengths=lengths)]
        for length in lengths:
            for i in range(CONTENDERS):
                slow = 1.0 if i == 0 else rng.uniform(0.4, 9.0)
                seconds = 1e-6 * length**0.5 * slow * rng.uniform(0.9, 1.1)
                metrics = {
                    "latency_s": Metric(
                        seconds, "s", (seconds * rng.uniform(0.9, 1), seconds * rng.uniform(1, 1.1)), 37
                    ),
                    "slowdown": Metric(slow, "ratio", (slow * rng.uniform(0.9, 1), slow * rng.uniform(1, 1.1)), 37),
                    "peak_bytes": Metric(float(4096 * rng.randrange(1, 1 << 20)), "B"),
                    "error": Metric(rng.uniform(1e-8, 1e-6), "ratio"),
                }
                name = "base" if i == 0 else f"contender_{i}"
                records.append(
                    cell(name, case=f"len{length}", metrics=metrics, limit_fraction=rng.uniform(0.05, 0.9), duel=None)
                )
        write(folder, records)
    return folder


def test_two_thousand_rows_and_six_charts_fit_into_150_kilobytes(tmp_path: Path) -> None:
    rendered = render(large(tmp_path / "results"), tmp_path / "site")
    assert rendered.problems == []
    assert rendered.rows == len(MACHINES) * CASES * CONTENDERS
    text = (tmp_path / "site" / "track" / "attention.html").read_text()
    assert text.count('<figure class="chart">') == 6
    assert len(re.findall(r"<tr class=", text)) <= 100 + 3 * CONTENDERS
    assert len(gzip.compress(text.encode(), 6)) < LIMIT
