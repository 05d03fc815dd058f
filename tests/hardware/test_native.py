"""Building C++ for contenders: once, by content, with a sentence where it cannot be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from archbench.hardware import native
from archbench.track import Unavailable


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer" / "_cpu"
    path.mkdir(parents=True)
    (path / "answer.cpp").write_text('extern "C" int answer() { return 42; }')
    return path


def test_a_library_is_built_once_and_again_when_its_source_or_flags_change(source: Path) -> None:
    first = native.build(source)
    made = first.stat().st_mtime_ns
    assert native.build(source) == first
    assert first.stat().st_mtime_ns == made
    assert native.build(source, ("-DX",)) != first
    (source / "answer.cpp").write_text('extern "C" int answer() { return 43; }')
    second = native.build(source)
    assert second != first
    assert native.load(source).answer() == 43
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".so"] * 3


def test_what_does_not_compile_says_why_and_leaves_nothing(source: Path) -> None:
    (source / "answer.cpp").write_text("int answer( {")
    with pytest.raises(RuntimeError, match=r"failed: .*answer\.cpp.*error"):
        native.build(source)
    assert list(native.folder().iterdir()) == []


def test_without_a_compiler_the_contender_is_unsupported(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**os.environ, "PATH": "", "CXX": ""})
    monkeypatch.setattr(native, "COMPILERS", ("no-such-compiler",))
    with pytest.raises(Unavailable, match=r"needs a C\+\+ compiler"):
        native.build(source)
