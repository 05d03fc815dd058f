"""What this machine's archbench finds and answers, as one JSON line: run on two machines, the lines are compared.

Which machine this is, whether every contender of the edge track is right at every test case, the digests of the model
files it makes, and what each contender answers on a text that the model wrote itself: logits, and how surprised it is.
Run by ``arm64_session.py``, here and on the emulated board.

usage: arm64_probe.py [--check] [MODEL/WEIGHTS ...]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from archbench.discovery import contender_modules, load_contender
from archbench.hardware.detect import default_device, detect, machine_name
from archbench.harness.front import checks
from archbench.models.edge_llm import EdgeCase, Tokens, _artefacts, _reference
from archbench.models.edge_llm._weights import open_weights
from archbench.track import Unavailable

WORDS = 48  # tokens of the text


def written(model: str, weights: str) -> Tokens:
    """The text a model writes of itself behind its begin token, by the reference: always the likeliest token."""
    opened = open_weights(EdgeCase(model, "pp", 1, weights=weights))
    memory: Any = []
    text = [1]
    while len(text) < WORDS:
        hidden, memory = _reference.evaluate(opened, np.asarray(text[-1:], np.int32), memory)
        text.append(int(_reference.vocabulary(opened, hidden)[-1].argmax()))
    return np.asarray(text, np.int32)


def surprise(logits: Any, text: Tokens) -> float:
    """Nats per token: how unlikely each token is by the logits of the one before."""
    shifted = logits[:-1] - logits[:-1].max(axis=1, keepdims=True)
    chances = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-chances[np.arange(len(text) - 1), text[1:]].mean())


def answers(model: str, weights: str) -> dict[str, Any]:
    """Of each contender that runs here: its last logits and its surprise."""
    text = written(model, weights)
    case = EdgeCase(model, "tg", len(text), weights=weights)
    found: dict[str, Any] = {}
    for contender in contender_modules("edge_llm"):
        if contender.startswith("torch"):  # no board has it
            continue
        loaded = load_contender("edge_llm", contender)
        if loaded.entry is None:
            found[contender] = loaded.reason
            continue
        try:
            decoder = loaded.entry.build(case)
            decoder.rewind()
            decoder(text[:1])
        except (ImportError, RuntimeError, Unavailable) as error:
            found[contender] = str(error)
            continue
        decoder.rewind()
        rows = np.stack([decoder(text[i : i + 1]).copy() for i in range(len(text))]).astype(np.float64)
        found[contender] = {"nats": surprise(rows, text), "logits": rows[-1].tolist()}
    return {
        "text": text.tolist(),
        "contenders": found,
        "digest": _artefacts.fingerprint(_artefacts.path(model, weights)),
    }


def main() -> None:
    arguments = sys.argv[1:]
    host = detect()
    found: dict[str, Any] = {"machine": machine_name(host, default_device(host)), "facts": host.facts()}
    if "--check" in arguments:
        verdicts = checks("edge_llm", list(contender_modules("edge_llm")))
        found["verdicts"] = {name: [(v.case, v.status, v.reason) for v in rows] for name, rows in verdicts}
    for name in arguments:
        if not name.startswith("-"):
            model, _, weights = name.partition("/")
            _artefacts.build(model, [weights])
            found[name] = answers(model, weights)
    found["torch"] = "torch" in sys.modules
    print(json.dumps(found))


if __name__ == "__main__":
    main()
