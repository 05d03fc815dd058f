"""Finding contenders: entry points, broken files, unknown names."""

from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from archbench import discovery
from archbench.discovery import UnknownName, contender_modules, load_contender, load_track, select
from archbench.track import Contender


def register(monkeypatch: pytest.MonkeyPatch, name: str, module: str, content: dict[str, object] | None) -> None:
    """Pretend an installed distribution registers a contender."""
    point = EntryPoint(name=name, value=module, group=discovery.ENTRY_POINTS)
    monkeypatch.setattr(discovery, "entry_points", lambda group: [point])
    if content is not None:
        made = types.ModuleType(module)
        made.__dict__.update(content)
        monkeypatch.setitem(sys.modules, module, made)


def test_an_installed_distribution_brings_a_contender(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"CONTENDER": Contender(build=lambda case: print), "__doc__": "Mine.\n\nSource: here"}
    register(monkeypatch, "attention/mine", "my_package.kernel", content)
    assert contender_modules("attention")["mine"] == "my_package.kernel"
    loaded = load_contender("attention", "mine")
    assert (loaded.status, loaded.note.summary, loaded.note.source) == ("ok", "Mine.", "here")


def test_an_entry_point_cannot_take_the_name_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, "attention/naive", "my_package.kernel", {})
    with pytest.raises(ValueError, match="already is"):
        contender_modules("attention")


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        (None, "unsupported", "needs the package my_package"),
        ({}, "crashed", "import failed"),
        ({"CONTENDER": 3}, "crashed", "not a Contender"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_status(
    monkeypatch: pytest.MonkeyPatch, content: dict[str, object] | None, status: str, reason: str
) -> None:
    register(monkeypatch, "attention/mine", "my_package.kernel", content)
    loaded = load_contender("attention", "mine")
    assert loaded.status == status
    assert reason in loaded.reason


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("atention", "unknown track 'atention': did you mean 'attention'?"),
        ("attention/naiv", "unknown contender of attention 'naiv': did you mean 'naive'?"),
        ("zzz", "known: attention"),
    ],
)
def test_an_unknown_name_gets_the_nearest_one(target: str, sentence: str) -> None:
    with pytest.raises(UnknownName) as caught:
        select((target,))
    assert sentence in str(caught.value)


def test_selection_merges_targets_and_keeps_whole_tracks() -> None:
    assert select(("attention/naive", "attention/torch_sdpa")) == {"attention": ("naive", "torch_sdpa")}
    assert set(select(("attention",))["attention"]) == set(contender_modules("attention"))
    assert select(()) == select(tuple(discovery.track_modules()))


def test_unknown_cases_of_a_track_are_a_key_error() -> None:
    with pytest.raises(KeyError):
        load_track("attention").case("b0")


@pytest.mark.parametrize(
    ("fields", "error", "sentence"),
    [
        ({"device": "gpu"}, ValueError, "device 'gpu': allowed are cpu, cuda"),
        ({"family": 5}, TypeError, "family is a int"),
        ({"build": 5}, TypeError, "build is a int"),
        ({"differs": ""}, TypeError, "say in words"),
        ({"gate": print}, ValueError, "needs differs="),
        ({"gate": 5, "differs": "much"}, TypeError, "gate is a int"),
    ],
)
def test_a_contender_that_cannot_be_meant_is_refused(
    fields: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        Contender(**({"build": print} | fields))


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "raise BaseException", "raise ValueError('\\ud800' * 10**6)"])
def test_whatever_an_import_raises_is_a_short_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    (tmp_path / "hostile_import.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    register(monkeypatch, "attention/mine", "hostile_import", None)
    loaded = load_contender("attention", "mine")
    assert (loaded.status, loaded.entry) == ("crashed", None)
    assert len(loaded.reason.encode()) <= 500
