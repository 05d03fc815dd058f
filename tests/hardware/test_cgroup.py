"""Limits of the control group: both versions, nested groups, namespaces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from archbench.hardware.cgroup import cpu_quota, memory_free, memory_limit
from archbench.hardware.cpu import usable_cores

Record = Callable[[Mapping[str, str]], Path]
V2 = "sys/fs/cgroup"


def test_no_group_is_no_limit(record: Record) -> None:
    root = record({})
    assert (cpu_quota(root), memory_limit(root), memory_free(root)) == (None, None, None)


@pytest.mark.parametrize(("text", "cores"), [("250000 100000", 2), ("50000 100000", 1), ("max 100000", 8)])
def test_the_quota_limits_the_cores_and_leaves_one(
    record: Record, monkeypatch: pytest.MonkeyPatch, text: str, cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert usable_cores(record({f"{V2}/cpu.max": text})) == cores


def test_the_tightest_ancestor_holds(record: Record) -> None:
    root = record(
        {
            "proc/self/cgroup": "0::/system.slice/board.service\n",
            f"{V2}/system.slice/board.service/cpu.max": "max 100000",
            f"{V2}/system.slice/cpu.max": "300000 100000",
            f"{V2}/system.slice/board.service/memory.max": "max",
            f"{V2}/system.slice/memory.max": str(4 << 30),
            f"{V2}/system.slice/memory.current": str(3 << 30),
            f"{V2}/system.slice/memory.stat": f"anon 5\ninactive_file {1 << 30}\n",
        }
    )
    assert cpu_quota(root) == 3.0
    assert memory_limit(root) == 4 << 30
    assert memory_free(root) == 2 << 30  # the page cache would be given back


def test_version_1_has_a_folder_per_controller(record: Record) -> None:
    root = record(
        {
            "proc/self/cgroup": "4:memory:/jobs/a\n1:cpu,cpuacct:/\n0::/\n",
            f"{V2}/cpu/cpu.cfs_quota_us": "150000",
            f"{V2}/cpu/cpu.cfs_period_us": "100000",
            f"{V2}/memory/memory.limit_in_bytes": "9223372036854771712",  # no limit, as version 1 writes it
            f"{V2}/memory/jobs/a/memory.limit_in_bytes": str(2 << 30),
            f"{V2}/memory/jobs/a/memory.usage_in_bytes": str(1 << 30),
        }
    )
    assert cpu_quota(root) == 1.5
    assert (memory_limit(root), memory_free(root)) == (2 << 30, 1 << 30)


def test_a_path_that_leads_out_of_the_namespace_is_not_followed(record: Record) -> None:
    files = {"proc/self/cgroup": "0::/../other\n", f"{V2}/cpu.max": "200000 100000", "sys/fs/other/cpu.max": "1 100000"}
    assert cpu_quota(record(files)) == 2.0
