"""Other tools' results: their numbers in our units, the same file every time, never ranked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from archbench.reports.imports import import_file
from archbench.reports.merge import merge
from archbench.reports.parquet import NoPyarrow, as_parquet
from archbench.reports.row import Row
from archbench.reports.rows import load
from archbench.reports.site import render
from results_builder import COMMIT, MACHINE, small

LLAMA = {
    "build_commit": "1d0125bc",
    "build_number": 6123,
    "cpu_info": "Cortex-A76",
    "gpu_info": "",
    "backends": "CPU",
    "model_filename": "/home/user/models/tinyllama-q4_0.gguf",
    "model_type": "llama 1B Q4_0",
    "model_size": 636728320,
    "model_n_params": 1100048384,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_threads": 4,
    "type_k": "f16",
    "type_v": "f16",
    "n_gpu_layers": 99,
    "flash_attn": False,
    "use_mmap": True,
    "n_prompt": 512,
    "n_gen": 0,
    "n_depth": 0,
    "test_time": "2026-01-02T03:04:05Z",
    "avg_ns": 1024000000,
    "stddev_ns": 1000,
    "avg_ts": 500.0,
    "stddev_ts": 1.0,
    "samples_ns": [1023000000, 1024000000, 1025000000],
    "samples_ts": [500.5, 500.0, 499.5],
}
GENERATE = LLAMA | {"n_prompt": 0, "n_gen": 128, "samples_ns": [n * 128_000_000 for n in (1, 2, 3, 4, 5, 6, 7)]}
PYTEST = {
    "machine_info": {
        "node": "somebodys-laptop",
        "machine": "x86_64",
        "system": "Linux",
        "python_version": "3.11.7",
        "cpu": {"brand_raw": "AMD EPYC", "count": 2, "flags": ["avx2"]},
    },
    "commit_info": {"id": COMMIT, "time": "2026-01-01T00:00:00+00:00", "dirty": True},
    "benchmarks": [
        {
            "group": "sum",
            "name": f"test_sum[{n}]",
            "fullname": f"tests/test_x.py::test_sum[{n}]",
            "params": {"n": n},
            "param": str(n),
            "stats": {"median": 2.5e-7, "rounds": 8, "data": [n * 1e-8 * i for i in range(1, 9)], "iterations": 5},
        }
        for n in (10, 100)
    ]
    + [
        {
            "group": None,
            "name": "test_plain",
            "fullname": "tests/test_x.py::test_plain",
            "params": None,
            "param": None,
            "stats": {"median": 3e-6, "rounds": 3},
        }
    ],
    "datetime": "2026-01-02T03:04:05.678901+00:00",
    "version": "5.3.1",
}


def take(folder: Path, format: str, content: object, machine: str = "pi5") -> list[Row]:
    """Import one file into a folder and read it back."""
    file = folder / "file.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    import_file(format, file, machine, folder / "results")
    found = load(folder / "results")
    assert found.problems == []
    return found.rows


def test_llama_bench_becomes_seconds_a_token(tmp_path: Path) -> None:
    rows = {row.case: row for row in take(tmp_path, "llama-bench", [LLAMA, GENERATE])}
    assert set(rows) == {"pp512", "tg128"}
    prompt, generate = rows["pp512"], rows["tg128"]
    assert prompt.metrics["latency_s"].value == 0.002
    assert (prompt.metrics["latency_s"].ci, prompt.metrics["latency_s"].n) == (None, 3)
    assert generate.metrics["latency_s"].value == 0.004
    assert (generate.metrics["latency_s"].ci, generate.metrics["latency_s"].n) == ((0.001, 0.007), 7)
    assert (prompt.machine, prompt.track, prompt.contender) == ("pi5", "llama_bench", "llama 1B Q4_0, CPU, 4 threads")
    assert (prompt.commit, prompt.rank, prompt.status) == ("1d0125bc", None, "ok")
    assert prompt.host["cpu.model"] == "Cortex-A76"
    assert prompt.host["version.llama.cpp"] == "b6123"
    assert "/home/user" not in "".join(p.read_text() for p in tmp_path.rglob("*.jsonl"))


def test_llama_bench_lines_are_the_same_file_as_its_list(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(entry) for entry in (LLAMA, GENERATE))
    assert take(tmp_path, "llama-bench", lines) == take(tmp_path, "llama-bench", [LLAMA, GENERATE])
    assert len(list((tmp_path / "results").rglob("*.jsonl"))) == 1


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"n_prompt": 512, "n_gen": 128, "n_depth": 4096}, "pp512+tg128@4096"),
        ({"backends": "CUDA"}, "llama 1B Q4_0, CUDA, 4 threads, ngl 99"),
        ({"flash_attn": 1, "type_k": "q8_0"}, "llama 1B Q4_0, CPU, 4 threads, kv q8_0/f16, flash attention"),
        ({"n_ubatch": 1024, "use_mmap": False}, "llama 1B Q4_0, CPU, 4 threads, batch 2048/1024, no mmap"),
        ({"flash_attn": -1, "load_mode": "auto", "repack": True}, "llama 1B Q4_0, CPU, 4 threads"),
        ({"flash_attn": 0, "load_mode": "auto"}, "llama 1B Q4_0, CPU, 4 threads, no flash attention"),
        ({"load_mode": "none", "flash_attn": "auto"}, "llama 1B Q4_0, CPU, 4 threads, load mode none"),
        ({"repack": False}, "llama 1B Q4_0, CPU, 4 threads, no repacking"),
    ],
)
def test_what_changes_the_speed_is_in_the_name(changes: dict[str, Any], name: str, tmp_path: Path) -> None:
    (row,) = take(tmp_path, "llama-bench", [LLAMA | changes])
    assert name in (row.case, row.contender)


def test_pytest_benchmark_becomes_medians_by_group_and_parameter(tmp_path: Path) -> None:
    rows = {(row.contender, row.case): row for row in take(tmp_path, "pytest-benchmark", PYTEST)}
    assert set(rows) == {
        ("tests/test_x.py::test_sum", "sum, 10"),
        ("tests/test_x.py::test_sum", "sum, 100"),
        ("tests/test_x.py::test_plain", "-"),
    }
    ten = rows["tests/test_x.py::test_sum", "sum, 10"]
    assert ten.metrics["latency_s"].value == pytest.approx(4.5e-7)
    assert ten.metrics["latency_s"].ci == pytest.approx((1e-7, 8e-7))
    assert ten.metrics["latency_s"].n == 8
    plain = rows["tests/test_x.py::test_plain", "-"].metrics["latency_s"]
    assert (plain.value, plain.ci, plain.n) == (3e-6, None, 3)
    assert (ten.commit, ten.host["dirty"], ten.rank) == (COMMIT, True, None)
    assert "somebodys-laptop" not in "".join(p.read_text() for p in tmp_path.rglob("*.jsonl"))


def test_a_real_pytest_benchmark_file_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")
    (tmp_path / "test_x.py").write_text(
        "def test_sum(benchmark):\n    benchmark.pedantic(lambda: sum(range(99)), rounds=7, iterations=3)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--benchmark-json=real.json",
        "test_x.py",
    ]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (row,) = take(tmp_path, "pytest-benchmark", (tmp_path / "real.json").read_text())
    assert row.metrics["latency_s"].n == 7
    assert row.metrics["latency_s"].ci is not None


def test_importing_twice_is_importing_once_and_the_board_shows_it(tmp_path: Path) -> None:
    first = take(tmp_path, "llama-bench", [LLAMA])
    before = {p: p.read_bytes() for p in (tmp_path / "results").rglob("*.jsonl")}
    assert take(tmp_path, "llama-bench", [LLAMA]) == first
    assert {p: p.read_bytes() for p in (tmp_path / "results").rglob("*.jsonl")} == before
    rendered = render(tmp_path / "results", tmp_path / "site")
    assert rendered.problems == []
    page = (tmp_path / "site" / "track" / "llama_bench.html").read_text()
    assert "llama 1B Q4_0, CPU, 4 threads" in page
    assert "Imported from llama-bench" in page


@pytest.mark.parametrize(
    ("format", "content", "sentence"),
    [
        ("llama-bench", "", "no tests"),
        ("llama-bench", "[{}]", "missing required field"),
        ("llama-bench", "{", "not JSON"),
        ("llama-bench", "\u202e", "not JSON"),
        ("llama-bench", [LLAMA, LLAMA], "is there twice"),
        ("llama-bench", [LLAMA, LLAMA | {"cpu_info": "other"}], "several builds or machines"),
        ("llama-bench", [LLAMA | {"samples_ns": [-1.0]}], "must be positive"),
        ("llama-bench", [LLAMA | {"n_prompt": 0}], "0 tokens"),
        ("llama-bench", [LLAMA | {"test_time": "now"}], "not an ISO 8601 date"),
        ("llama-bench", [LLAMA | {"model_type": "llama\u202e"}], "not usable"),
        ("pytest-benchmark", "[]", "Expected `object`"),
        ("pytest-benchmark", PYTEST | {"benchmarks": []}, "no benchmarks"),
        ("pytest-benchmark", PYTEST | {"datetime": "2020-01-01T00:00:00"}, "before its commit"),
        ("pytest-benchmark", json.dumps(PYTEST).replace("3e-06", "NaN"), "finite"),
    ],
)
def test_a_file_that_is_not_of_its_format_is_a_sentence(
    format: str, content: object, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        take(tmp_path, format, content)
    assert not (tmp_path / "results").exists()


def test_an_asv_tree_comes_in_through_validation(tmp_path: Path) -> None:
    results = small(tmp_path / "theirs")
    (results / MACHINE / "bad.json").write_text("{")
    merge([results], tmp_path / "ours")
    assert load(tmp_path / "ours").problems == []
    assert load(tmp_path / "ours").rows == load_without(results, "bad.json")


def load_without(folder: Path, name: str) -> list[Row]:
    found = load(folder)
    assert [Path(problem.path).name for problem in found.problems] == [name]
    return found.rows


def test_parquet_holds_the_numbers_of_the_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'archbench[board]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    found = load(small(tmp_path))
    content = as_parquet(found)
    assert content == as_parquet(found)
    rows = parquet.read_table(arrow.BufferReader(content)).to_pylist()
    assert len(rows) == len(found.rows) == 16
    for row, flat in zip(found.rows, rows, strict=True):
        assert (row.machine, row.commit, row.track, row.case, row.contender, row.status) == tuple(
            flat[name] for name in ("machine", "commit", "track", "case", "contender", "status")
        )
        assert (row.rank or (None, None)) == (flat["rank_lo"], flat["rank_hi"])
        assert json.loads(flat["host"]) == dict(row.host)
        for name in ("latency_s", "slowdown", "peak_bytes", "error"):
            metric = row.metrics.get(name)
            kept = [flat[f"{name}_{part}"] for part in ("value", "lo", "hi", "n", "unit")]
            expected = [metric.value, *(metric.ci or (None, None)), metric.n, metric.unit] if metric else [None] * 5
            assert kept == expected


def test_parquet_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NoPyarrow, match=r"pip install 'archbench\[board\]'"):
        as_parquet(load(small(tmp_path)))
