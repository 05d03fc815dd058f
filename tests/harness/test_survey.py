"""Hostile files beside honest ones: each costs its own row, and no import happens in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from archbench import discovery
from archbench.cells import encode
from archbench.harness import session, survey
from archbench.harness.survey import describe

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

HONEST = """
from archbench.track import Contender
CONTENDER = Contender(build=print)
"""

HOSTILE = {
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "exits_hard": ("import os; os._exit(0)", "exited with code 0"),
    "raises_the_root": ("raise BaseException('no')", "BaseException: no"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "crashes": ("import ctypes, faulthandler; faulthandler.disable(); ctypes.string_at(0)", "SIGSEGV"),
    "hangs": ("while True: pass", "no result within 2 s"),
    "kills_itself": ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    "long_winded": ("raise ValueError('x' * 50_000_000)", "ValueError: xxx"),
    "unprintable": ("class E(Exception):\n    def __str__(self): raise E\nraise E", "its message cannot be read"),
    "odd_family": ("from archbench.track import Contender\nCONTENDER = Contender(build=print, family=5)", "family"),
    "odd_device": ("from archbench.track import Contender\nCONTENDER = Contender(build=print, device='gpu')", "'gpu'"),
    "odd_gate": ("from archbench.track import Contender\nCONTENDER = Contender(build=print, gate=print)", "differs"),
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that the attention track takes for its contenders; an honest one first and last."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(survey, "LIMIT_S", 2.0)

    def modules(track: str) -> dict[str, str]:
        return {path.stem: path.stem for path in sorted(tmp_path.glob("*.py"))}

    monkeypatch.setattr(discovery, "contender_modules", modules)
    monkeypatch.setattr(survey, "contender_modules", modules)
    (tmp_path / "aaa_honest.py").write_text(f'"""First.\n\nSource: here\n"""{HONEST}')
    (tmp_path / "zzz_honest.py").write_text(f'"""Last."""{HONEST}')
    return tmp_path


def test_every_hostile_file_costs_its_own_row(files: Path) -> None:
    for name, (text, _) in HOSTILE.items():
        (files / f"{name}.py").write_text(text)
    found = describe("attention")
    assert list(found) == sorted(["aaa_honest", "zzz_honest", *HOSTILE])
    for name, (_, reason) in HOSTILE.items():
        assert (found[name].status in ("crashed", "timeout"), reason in found[name].reason) == (True, True), found[name]
        assert len(found[name].reason) <= 550
    for name, summary in (("aaa_honest", "First."), ("zzz_honest", "Last.")):
        assert (found[name].status, found[name].note.summary) == ("ok", summary)
    assert found["aaa_honest"].note.source == "here"
    assert not {"aaa_honest", *HOSTILE} & sys.modules.keys()


def test_a_surrogate_in_a_docstring_does_not_stop_the_run(files: Path) -> None:
    (files / "odd.py").write_text(rf'"""Odd \ud800 text."""{HONEST}')
    note = session.track_note("attention", files)
    assert note.contenders["odd"].summary == r"Odd \ud800 text."
    encode(note)


def test_a_file_that_pretends_to_be_described_is_crashed(files: Path) -> None:
    (files / "forged.py").write_text(
        "from archbench.harness import survey\nsurvey.msgspec.json.encode = lambda described: b'{}'" + HONEST
    )
    found = describe("attention", ["aaa_honest", "forged"])
    assert found["aaa_honest"].status == "ok"
    assert found["forged"].status == "crashed"


def test_list_stays_json_whatever_a_file_prints(tmp_path: Path) -> None:
    (tmp_path / "noisy.py").write_text("print('hello')" + HONEST)
    code = """
import os, sys
sys.path.insert(0, os.getcwd())
from archbench import discovery
from archbench.harness import survey
discovery.contender_modules = survey.contender_modules = lambda track: {"noisy": "noisy"}
from archbench.cli import app
app(["list", "--format", "json"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    (contender,) = json.loads(done.stdout)["tracks"][0]["contenders"]
    assert (contender["status"], "hello" in done.stderr) == ("ok", True)
