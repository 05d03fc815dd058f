"""The session on a GPU host, without a GPU: what it refuses, what it notes, and that a failed step stops nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gpu_session
import pytest

from archbench.cells import CELLS_DIR, Ceiling
from archbench.hardware.cpu import Cpu
from archbench.hardware.detect import Host
from archbench.hardware.gpu import Gpu
from archbench.harness.front import Verdict

CPU = Cpu(model="AMD EPYC 9354", vendor="amd", architecture="x86_64", cores=16, cores_total=16)
CARD = Gpu(name="NVIDIA L4", uuid="GPU-1", card_uuid="GPU-1", driver="580.65.06", memory_bytes=24 << 30)
BARE = Host(cpu=CPU, memory_bytes=64 << 30, no_gpu_reason="NVIDIA driver not found")
EQUIPPED = Host(cpu=CPU, memory_bytes=64 << 30, gpus=(CARD,))
CEILING = Ceiling(name="copy", value=2.5e11, unit="B/s")
RIGHT = [Verdict("len63", "ok", ""), Verdict("len100", "unsupported", "no fp64")]
WRONG = [Verdict("len63", "ok", ""), Verdict("len100", "wrong", "out[0] is 2, expected 1")]


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """A host with a card, whose command line only writes down what it was asked. Returns that."""
    results, asked = tmp_path / "results", []
    (results / "nvidia-l4" / CELLS_DIR).mkdir(parents=True)
    (results / "nvidia-l4" / CELLS_DIR / "run.jsonl").write_text("{}\n")
    (results / "somebody-else").mkdir()
    (results / "benchmarks.json").write_text("{}\n")

    def verb(*arguments: str, log: Path) -> None:
        asked.append(arguments)
        log.write_text("done\n")

    def checks(track: str, names: Sequence[str]) -> Iterator[tuple[str, list[Verdict]]]:
        yield from ((name, RIGHT) for name in names)

    monkeypatch.setenv("ARCHBENCH_DEVICE", "cpu")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(gpu_session, "why_not_cuda", lambda host: host.no_gpu_reason)
    monkeypatch.setattr(gpu_session, "measured_ceilings", lambda host, device: [CEILING])
    monkeypatch.setattr(gpu_session, "results_dir", lambda configuration: results)
    monkeypatch.setattr(gpu_session, "checks", checks)
    monkeypatch.setattr(gpu_session, "archbench", verb)
    return asked


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def test_without_a_gpu_it_says_why_and_makes_nothing(
    tmp_path: Path, verbs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_session.main([str(tmp_path / "out")], look=lambda: BARE) == 2
    assert capsys.readouterr().err == "gpu_session: there is no GPU to measure on: NVIDIA driver not found\n"
    assert not (tmp_path / "out").exists()
    assert verbs == []


@pytest.mark.parametrize(
    ("targets", "said"), [([], "not an empty folder"), (["atention"], "did you mean"), (["attention/nave"], "naive")]
)
def test_what_cannot_be_meant_ends_with_a_sentence(
    targets: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if not targets:
        out.mkdir()
        (out / "summary.json").write_text("of another session")
    with pytest.raises(SystemExit) as ended:
        gpu_session.main([str(out), *targets], look=lambda: EQUIPPED)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_session_leaves_everything_in_one_folder(
    tmp_path: Path, verbs: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert gpu_session.main([str(out), "attention/naive"], look=lambda: EQUIPPED) == 0
    assert verbs == [("run", "attention/naive"), ("board", "--out", str(out / "site"))]
    found = summary(out)
    assert (found["machine"], found["device"], found["driver"]) == ("nvidia-l4", "NVIDIA L4", "580.65.06")
    assert found["versions"]["driver"] == "580.65.06"
    assert found["versions"]["torch"]
    assert len(found["commit"]) == 40
    assert [(c["name"], c["value"], c["unit"]) for c in found["ceilings"]] == [("copy", 2.5e11, "B/s")]
    assert [(name, step["outcome"]) for name, step in found["steps"].items()] == [
        (name, "ok") for name in ("ceilings", "gate", "run", "results", "board")
    ]
    assert "GPU-1" not in (out / "summary.json").read_text(), "a serial number identifies a machine"
    assert json.loads((out / "gate.json").read_text())["attention/naive"][1]["reason"] == "no fp64"
    assert (out / "results" / "nvidia-l4" / CELLS_DIR / "run.jsonl").read_text() == "{}\n"
    assert sorted(path.name for path in (out / "results").iterdir()) == ["benchmarks.json", "nvidia-l4"]
    printed = capsys.readouterr().out
    assert f"{'attention/naive':36} right   1 of 2   unsupported   1 (no fp64)\n" in printed


def test_a_step_that_fails_is_noted_and_the_next_begins(
    tmp_path: Path,
    verbs: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def no_memory(*_: Any) -> list[Ceiling]:
        raise RuntimeError("CUDA out of memory")

    def interrupted(*arguments: str, log: Path) -> None:
        verbs.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_session, "measured_ceilings", no_memory)
    monkeypatch.setattr(gpu_session, "checks", lambda track, names: iter([("naive", WRONG)]))
    monkeypatch.setattr(gpu_session, "archbench", interrupted)
    assert gpu_session.main([str(tmp_path / "out"), "attention/naive"], look=lambda: EQUIPPED) == 1
    assert {name: step["outcome"] for name, step in summary(tmp_path / "out")["steps"].items()} == {
        "ceilings": "failed: CUDA out of memory",
        "gate": "failed: 1 check(s), see gate.json",
        "run": "interrupted",
        "results": "ok",
        "board": "interrupted",
    }
    said = capsys.readouterr()
    assert "\n    len100: wrong: out[0] is 2, expected 1\n" in said.out
    assert said.err == "gpu_session: not well: ceilings, gate, run, board\n"


def test_a_machine_that_measured_nothing_has_nothing_to_carry(tmp_path: Path, verbs: list[tuple[str, ...]]) -> None:
    with pytest.raises(gpu_session.Failed, match="nvidia-h100-sxm has no results"):
        gpu_session.carry("nvidia-h100-sxm", tmp_path)


def test_a_verb_is_heard_on_the_screen_and_in_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu_session.archbench("board", "--help", log=tmp_path / "board.log")
    assert "Render the leaderboard" in capsys.readouterr().out
    with pytest.raises(gpu_session.Failed, match=r"archbench bord ended with 2, see run\.log"):
        gpu_session.archbench("bord", log=tmp_path / "run.log")
    assert "No such command" in (tmp_path / "run.log").read_text()
