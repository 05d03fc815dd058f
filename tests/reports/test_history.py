"""History of our tracks: a step is found and named, and never across a change of version."""

from __future__ import annotations

from pathlib import Path

from archbench.reports.charts.spark import spark
from archbench.reports.site import render
from results_builder import cell, note, run, write


def commits(folder: Path, slowdowns: list[float], torch: list[str]) -> Path:
    for i, (slow, version) in enumerate(zip(slowdowns, torch, strict=True)):
        day = f"2026-01-{i + 1:02}T00:00:00+00:00"
        header = run(identity=f"202601{i + 1:02}T000000Z-{i:06x}", commit=f"{i:08x}" + "0" * 32, started=day,
                     commit_date=day, versions={"torch": version})  # fmt: skip
        write(folder, [header, note(), cell("base"), cell("fast", slow)])
    return folder


def page(folder: Path) -> str:
    render(folder / "results", folder / "site")
    return (folder / "site" / "history" / "attention.html").read_text()


def test_a_step_is_named_with_its_commit(tmp_path: Path) -> None:
    slowdowns = [0.500, 0.501, 0.499, 0.500, 0.502, 0.750, 0.751, 0.749, 0.750, 0.752]
    commits(tmp_path / "results", slowdowns, ["2.13.0"] * 10)
    text = page(tmp_path)
    assert "<td>1.50× at 00000005</td>" in text
    assert text.count('<line class="step"') == 1
    assert text.count('<line class="epoch"') == 0
    assert text.index("fast</a>") < text.index("base</a>")  # what moved most comes first


def test_a_step_where_torch_changed_is_a_new_epoch(tmp_path: Path) -> None:
    slowdowns = [0.500, 0.501, 0.499, 0.500, 0.502, 0.750, 0.751, 0.749, 0.750, 0.752]
    commits(tmp_path / "results", slowdowns, ["2.12.0"] * 5 + ["2.13.0"] * 5)
    text = page(tmp_path)
    assert '<line class="step"' not in text
    assert text.count('<line class="epoch"') == 2  # of both contenders
    assert "10 in 2 epochs" in text


def test_one_commit_is_no_history(tmp_path: Path) -> None:
    commits(tmp_path / "results", [0.5], ["2.13.0"])
    assert "A history begins with the second." in page(tmp_path)


def test_a_spark_skips_what_is_missing_and_breaks_at_epochs() -> None:
    made = spark([1.0, None, 3.0, 2.0, float("nan")], epochs=[3], steps=[2])
    assert [len(line) for line in made.lines] == [2, 1]
    assert made.lines[0][0][1] > made.lines[0][1][1]  # higher values are higher up
    assert made.epochs[0] > made.steps[0]
    assert spark([], epochs=[]).lines == []
    assert spark([2.0, 2.0]).lines == [[(3.0, 17.0), (217.0, 17.0)]]
