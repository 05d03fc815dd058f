"""The script that compares in fresh processes: the cases it knows, what it asks, what it makes of the answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import edge_pairs
from archbench.models.edge_llm import TRACK, EdgeCase
from archbench.models.edge_llm._artefacts import path

BENCH = f"""#!{sys.executable}
import json, sys
asked = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if asked["-d"] == "9":
    sys.exit("error: no such model")
tokens = int(asked["-p"]) + int(asked["-n"])
print(json.dumps([{{"samples_ns": [tokens * ms * 1e6 for ms in (3, 2, 90)][: int(asked["-r"])]}}]))
"""


@pytest.fixture
def bench(tmp_path: Path) -> str:
    """A llama-bench that needs no model: 3, 2 and 90 ms a token."""
    script = tmp_path / "llama-bench"
    script.write_text(BENCH)
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize("case", TRACK.test_cases + TRACK.bench_cases, ids=lambda case: case.slug)
def test_every_case_is_known_by_its_slug(case: EdgeCase) -> None:
    assert edge_pairs.case_of(case.slug) == case


@pytest.mark.parametrize("slug", ["smollm2_135m-q4_0", "smollm2_135m-q4_0-tg", "no-q4_0-tg1", "tiny_random-q4_0-tg0"])
def test_a_slug_of_no_case_is_refused(slug: str) -> None:
    with pytest.raises(ValueError, match=r"is no case|allowed are|at least 1"):
        edge_pairs.case_of(slug)


def test_llama_bench_is_asked_for_the_same(bench: str) -> None:
    case = edge_pairs.case_of("tiny_random-q8_0-tg5-d7-kv-q8_0-t3")
    words = edge_pairs.command(bench, case, 4)
    asked = dict(zip(words[1::2], words[2::2], strict=True))
    assert words[0] == bench
    assert asked == {"-m": str(path("tiny_random", "q8_0")), "-p": "0", "-n": "5", "-d": "7", "-t": "3", "-r": "4",
                     "-ctk": "q8_0", "-ctv": "q8_0", "-o": "json"}  # fmt: skip
    assert edge_pairs.fresh(bench, case, 3) == pytest.approx(3e-3)  # the median of a token


def test_a_process_that_fails_ends_the_comparison_with_what_it_said(bench: str) -> None:
    with pytest.raises(SystemExit, match="ended with 1: error: no such model"):
        edge_pairs.fresh(bench, edge_pairs.case_of("tiny_random-q4_0-pp5-d9"), 1)


def test_the_calmest_pairs_are_summed_up(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([(2.0, 1.0, 0.05), (9.0, 1.0, 0.5), (4.0, 1.0, 0.0), (3.0, 1.0, 0.2)])
    monkeypatch.setattr(edge_pairs, "pair", lambda sides, calls: next(answers))
    case = edge_pairs.case_of("tiny_random-q4_0-tg1")
    edge_pairs.pairs([("a", case), ("b", case)], count=3, calls=1)
    *_, last = capsys.readouterr().out.splitlines()
    assert "a at tiny_random-q4_0-tg1 over b at tiny_random-q4_0-tg1: median 3.0000" in last
    assert "the 3 calmest of 4 pairs (others 20% at most)" in last


def test_a_machine_that_is_never_calm_is_given_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(edge_pairs, "pair", lambda sides, calls: (1.0, 1.0, 0.9))
    case = edge_pairs.case_of("tiny_random-q4_0-tg1")
    edge_pairs.pairs([("a", case), ("b", case)], count=2, calls=1)
    assert "the 2 calmest of 6 pairs (others 90% at most)" in capsys.readouterr().out


def test_a_contender_is_timed_in_a_process_of_its_own() -> None:
    pytest.importorskip("onnxruntime", reason="the contender timed here needs onnxruntime")
    words = edge_pairs.command("ort_fused", edge_pairs.case_of("tiny_random-q4_0-tg3-t1"), 2)
    assert words[0] == sys.executable
    assert 0 < edge_pairs.fresh("ort_fused", edge_pairs.case_of("tiny_random-q4_0-tg3-t1"), 2) < 1
