"""archbench edge: files are made and listed, and a mistake ends with a sentence and the right code."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from archbench.cli import app
from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm import _artefacts_trained as trained

pytest.importorskip("gguf", reason="model files are written with the package gguf")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ARCHBENCH_EDGE", str(tmp_path / "edge"))
    monkeypatch.delenv("ARCHBENCH_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "edge"


def edge(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, ["edge", *arguments], env=environment)


def test_build_makes_files_and_names_them(folder: Path) -> None:
    done = edge("build", "tiny_random", "--weights", "q8_0", "--weights", "f16")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        f"{folder / 'tiny_random-q8_0.gguf'} (2.2 MB)",
        f"{folder / 'tiny_random-f16.gguf'} (4.1 MB)",
    ]
    assert artefacts.is_whole(folder / "tiny_random-f16.gguf")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("build", "tinyllama"), 2, "no model 'tinyllama': there are tiny_random, stories260k"),
        (("build", "tiny_random", "--weights", "q3"), 2, "no kind of weights 'q3': there are f32, f16"),
        (("build", "stories260k", "--weights", "q4_0"), 2, "no multiple of the 32 weights of a block"),
        (("build", "stories260k"), 1, "no $ARCHBENCH_DATA/llm/stories260K.bin"),
        (("build", "tinyllama_1b1"), 1, "nobody answers; or put config.json and model.safetensors"),
    ],
)
def test_a_mistake_ends_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    monkeypatch.setattr(trained, "unreachable", lambda: "nobody answers")
    done = edge(*arguments)
    assert done.exit_code == code
    assert sentence in done.stderr
    assert done.stderr.startswith("archbench: ")


def test_a_package_that_is_missing_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'gguf'", name="gguf")

    monkeypatch.setattr(artefacts, "build", gone)
    done = edge("build", "tiny_random")
    assert done.exit_code == 1
    assert "needs the package gguf: `pip install 'archbench[edge]'`" in done.stderr


def test_list_shows_what_is_here_and_makes_nothing(folder: Path) -> None:
    before = edge("list")
    assert before.exit_code == 0
    row = next(line for line in before.stdout.splitlines() if "tiny_random" in line)
    assert row.count("on use") == 5
    assert not folder.exists()
    edge("build", "tiny_random", "--weights", "q4_0")
    (folder / "stories260k-f32.gguf").write_bytes(b"half a file")
    after = edge("list").stdout.splitlines()
    assert "1.2 MB" in next(line for line in after if line.startswith("tiny_random "))
    stories = next(line for line in after if line.startswith("stories260k "))
    assert "damaged" in stories
    assert stories.count("never") == 2
    assert "archbench edge build MODEL [--weights KIND]" in after[-1]


def test_a_list_fits_a_narrow_terminal(folder: Path) -> None:
    done = edge("list", COLUMNS="80")
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    assert "tinyllama_1b1_random " in done.stdout


def test_a_file_in_the_folders_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    monkeypatch.setenv("ARCHBENCH_EDGE", str(taken))
    done = edge("build", "tiny_random")
    assert done.exit_code == 1
    assert f"{taken} is a file: name a folder with ARCHBENCH_EDGE" in done.stderr
