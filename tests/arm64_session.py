"""Is every answer of the edge track and of the agent on an emulated 64-bit Arm board the one of this machine?

The project is installed in a Debian root of the board's release as docs/raspberry-pi.md says. Then, on a Raspberry Pi 5
and on a Raspberry Pi 4, whose processor has fewer instructions: which machine it is, the gate of every contender at
every test case, model files whose digests must be this machine's, and a text the model writes with the same logits
and the same surprise. Last the agent's life on the board, up to what ``collect`` accepts on this machine. Only right
and wrong: a time that is measured under emulation means nothing.

usage: arm64_session.py [FOLDER]     FOLDER keeps what is downloaded and compiled, 1 GB; else ~/.cache/archbench/arm64
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from agent_world import TRACK, make_world, rows_of
from arm64_board import PI_4, PI_5, Emulated, Failed, arm_programs_run, debian, install, missing, run, wheels
from quick_track import CASES, CONTENDERS
from working_copy import copy_tree

ANSWERING = ("cpu_native", "llama_cpp", "ort_fused", "ort_plain")
# Relative, of logits: int8 activations are rounded at other places by other vectors, float32 sums in another order.
NEAR = {"tiny_random/f32": 1e-4, "tiny_random/q8_0": 3e-2, "tiny_random/q4_0": 3e-2, "stories260k/f32": 1e-4}
SURPRISE = 0.01  # relative, of nats per token: what the track asks of runtimes at equal weights
CHECKPOINT = Path("llm/stories260K.bin")
HERE = (sys.executable, "-m", "archbench")
STARTED = time.perf_counter()


def say(text: str) -> None:
    print(f"[{time.perf_counter() - STARTED:5.0f} s] {text}", flush=True)


def must(holds: bool, says: str) -> None:
    if not holds:
        raise Failed(says)
    print(f"          ok: {says}", flush=True)


def right_at_every_case(verdicts: dict[str, list[list[str]]]) -> None:
    wrong = []
    for contender, rows in verdicts.items():
        right = sum(status == "ok" for _, status, _ in rows)
        said = sorted({reason for _, status, reason in rows if status == "unsupported"})
        print(f"          {contender}: right at {right} of {len(rows)} cases. {'; '.join(said)}", flush=True)
        wrong += [f"{contender} at {case}: {s}, {why}" for case, s, why in rows if s not in ("ok", "unsupported")]
        wrong += [f"{contender} runs at no case"] if contender in ANSWERING and not right else []
    must(not wrong, f"every contender is right at every case it runs at {'; '.join(wrong)}")


def same_answers(name: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    must(there["digest"] == here["digest"], f"{name}: the file's digest is the one made here, {here['digest'][:12]}")
    must(there["text"] == here["text"], f"{name}: the reference writes the same {len(here['text'])} tokens")
    for contender in ANSWERING:
        got, expected = there["contenders"].get(contender), here["contenders"].get(contender)
        if not isinstance(got, dict) or not isinstance(expected, dict):
            print(f"          {name}, {contender}: there {_told(got)}, here {_told(expected)}", flush=True)
            must(not isinstance(expected, dict), f"{contender} answers there what it answers here")
            continue
        a, b = np.asarray(got["logits"]), np.asarray(expected["logits"])
        apart = float(np.linalg.norm(a - b) / np.linalg.norm(b))
        surprised = abs(got["nats"] - expected["nats"]) / max(expected["nats"], 0.1)
        says = (
            f"{name}, {contender}: logits {apart:.1e} apart, {got['nats']:.4f} and {expected['nats']:.4f} nats a token"
        )
        must(apart <= NEAR[name] and surprised <= SURPRISE, says)


def _told(found: Any) -> str:
    return "answers" if isinstance(found, dict) else str(found)


def probe(board: Emulated | None, names: list[str], check: bool, edge: Path) -> dict[str, Any]:
    """What ``arm64_probe.py`` prints on a board, or on this machine."""
    words = ("tests/arm64_probe.py", *(["--check"] if check else []), *names)
    if board is None:
        text = run(sys.executable, *words, environment={**os.environ, "ARCHBENCH_EDGE": str(edge)})
    else:
        text = board.run("python", *words, ARCHBENCH_EDGE="/edge", ARCHBENCH_DATA="/data")
    found: dict[str, Any] = json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("{")))
    return found


def session(cache: Path, scratch: Path) -> None:
    root = scratch / "root"
    say("a Debian root")
    debian(cache, root)
    say("wheels")
    found = wheels(cache, root)
    say("the project in the root")
    copy = copy_tree(scratch / "copy")
    install(root, found, copy.top)
    names = [name for name in NEAR if name.startswith("tiny")]
    checkpoint = Path(os.environ.get("ARCHBENCH_DATA", "")) / CHECKPOINT
    if "ARCHBENCH_DATA" in os.environ and checkpoint.is_file():
        (root / "data" / CHECKPOINT).parent.mkdir(parents=True)
        shutil.copy(checkpoint, root / "data" / CHECKPOINT)
        names = list(NEAR)
    else:
        print(f"          without stories260k: ARCHBENCH_DATA names no folder with {CHECKPOINT}")
    say("this machine's answers")
    here = probe(None, names, check=False, edge=scratch / "edge")
    any_board = Emulated(root, scratch / "none", PI_5)
    for model in (PI_5, PI_4):
        say(model.name)
        shutil.rmtree(root / "edge", ignore_errors=True)
        there = probe(any_board.as_board(model), names, check=True, edge=Path())
        facts = there["facts"]
        must(there["machine"] == model.name, f"is {there['machine']}, {facts['cpu.architecture']}, {facts['cpu.isa']}")
        must(not there["torch"], "needs no torch")
        right_at_every_case(there["verdicts"])
        for name in names:
            same_answers(name, there[name], here[name])
    say("the agent")
    agent_lives(any_board.as_board(PI_5), scratch)


def agent_lives(board: Emulated, scratch: Path) -> None:
    """The agent from ``init`` to what ``collect`` takes on this machine."""
    world = make_world(scratch / "world")
    srv = board.root / "srv"
    shutil.copytree(world.source, srv / "source")
    state, remote, allowed = "/srv/state", "/srv/remote.git", srv / "allowed_signers"
    agent = ("archbench", "agent")
    board.run("git", "init", "--quiet", "--bare", remote)
    told = ("--repository", "/srv/source", "--remote", remote, "--suite", TRACK, "--python", "/venv/bin/python")
    said = board.run(*agent, "init", "--state", state, *told).splitlines()
    line = next(line for line in said if line.startswith(f'{PI_5.name} namespaces="git" ssh-ed25519 '))
    print(f"          ok: agent init prints {line[:60]}...", flush=True)
    allowed.write_text(f"{line}\n")
    board.run("python", "-m", "archbench.hardware.agent.signed_hook", remote, "/srv/allowed_signers")
    held = board.outcome(*agent, "run", "--once", "--state", state)
    if held[0]:  # the board's clock and load are this machine's
        must("not measured: " in held[1], f"agent run is held up: {held[1].splitlines()[-1].partition(' looked: ')[2]}")
        board = board.as_board(replace(PI_5, name="a board without a device tree", tree=""))
        board.run(*agent, "run", "--once", "--state", state)
    print(
        "".join(f"              {line}\n" for line in board.run(*agent, "status", "--state", state).splitlines()),
        end="",
    )
    code, again = board.outcome(*agent, "run", "--once", "--state", state)
    must(code == 0 and "looked: 0 measured" in again, "the next look finds nothing to do")
    where = ("--results", scratch / "results", "--state", scratch / "collector")
    taken = run(*HERE, *agent[1:], "collect", srv / "remote.git", "--allowed-signers", allowed, *where)
    must(f"collected {PI_5.name} run " in taken and "not verified" not in taken, f"collect here: {taken.strip()}")
    (file,) = (scratch / "results" / PI_5.name / "cells").glob("*.jsonl")
    rows = rows_of(file.read_text())
    must(rows.total() == len(rows) == len(CASES) * len(CONTENDERS), f"{len(rows)} rows, each once")


def main() -> None:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench" / "arm64"
    cache = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else default
    reason = missing()
    if reason is not None:
        sys.exit(f"arm64: {reason}")
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with arm_programs_run(), tempfile.TemporaryDirectory(prefix="archbench-arm64-", dir=cache) as scratch:
            session(cache, Path(scratch))
    except Failed as failed:
        sys.exit(f"arm64: {failed}")
    say(f"arm64: all of it is right; archbench at work on {PI_5.name} and {PI_4.name}")


if __name__ == "__main__":
    main()
