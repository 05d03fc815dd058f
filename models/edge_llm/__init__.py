"""Llama models on small machines: how long a token takes, for a prompt that is read and for a text that is written.

One set of weights per case, so that runtimes answer the same question: a GGUF file that ``archbench edge build`` made
(``_artefacts.py``), whose quantised values every contender uses as they are. Two phases, as llama-bench has them:

- ``pp``: a prompt of ``tokens`` tokens is evaluated in one call; the answer is the logits after its last token.
- ``tg``: ``tokens`` tokens are evaluated one after the other, each alone; the answer is the logits after each of them.

Before both lie ``depth`` tokens, always the same ones, which the contender has evaluated when the clock starts. Which
token comes next is the input, drawn at random: neither a tokeniser nor sampling is timed. ``latency_s`` is seconds per
token of the call.

A contender's ``build(case)`` returns a ``Decoder``. The track drives it: in ``tg`` it sees a token only after it has
given the logits of the one before. What changes an implementation (fusion, a cache that is copied) is a contender, and
stands beside the others in one table; what changes the question (weights, precision of the cache, threads, depth) is a
case. No contender needs torch, but for those that are named after it.

Letters: T tokens, V vocabulary.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/llama-bench (the protocol)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm._config import MODELS, LlamaConfig
from archbench.models.edge_llm._gate import gate
from archbench.track import Call, Device, Place, Timing, Track

Tokens = npt.NDArray[np.int32]
Logits = npt.NDArray[np.float32]

PHASES = {"pp": "prompt processing", "tg": "text generation"}
WEIGHTS = {"f32": 32.0, "f16": 16.0, "q8_0": 8.5, "q4_0": 4.5, "q4_k_m": 4.83}  # bits a weight, scales included
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}  # of a key's or a value's element; f16: at least that precision
COMPUTE = {"f32": "fp32", "f16": "fp16"}  # of the matrix-rate ceiling; quantised weights meet int8 activations


class Decoder(Protocol):
    """A model with a memory of the tokens it has seen."""

    def rewind(self) -> None:
        """Forget every token behind the case's first ``depth`` ones."""

    def __call__(self, tokens: Tokens) -> Logits:
        """Evaluate tokens (T,) behind the ones seen so far; logits (V,) after the last one.

        The next call may overwrite them.
        """


@dataclass(frozen=True)
class EdgeCase:
    """One pass over one model."""

    model: str  # of MODELS
    phase: str  # of PHASES
    tokens: int
    depth: int = 0  # tokens that are in the cache before
    weights: str = "q4_0"  # of WEIGHTS
    kv: str = "f16"  # of KV_BYTES
    threads: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("model", MODELS), ("phase", PHASES), ("weights", WEIGHTS), ("kv", KV_BYTES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} {getattr(self, name)!r}: allowed are {', '.join(allowed)}")
        if self.tokens < 1 or self.depth < 0:
            raise ValueError(f"{self.tokens} tokens at depth {self.depth}: at least 1 at 0")
        if self.depth + self.tokens > self.config.context:
            raise ValueError(
                f"{self.depth} + {self.tokens} tokens; {self.model} has a context of {self.config.context}"
            )

    @property
    def config(self) -> LlamaConfig:
        return MODELS[self.model].config

    @property
    def slug(self) -> str:
        parts = [self.model, self.weights, f"{self.phase}{self.tokens}"] + ([f"d{self.depth}"] if self.depth else [])
        parts += [f"kv-{self.kv}"] if self.kv != "f16" else []
        return "-".join(parts + ([f"t{self.threads}"] if self.threads else []))

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        axes: dict[str, str | int | float | bool] = {"model": self.model, "weights": self.weights, "phase": self.phase}
        axes |= {"tokens": self.tokens, "depth": self.depth, "kv_cache": self.kv}
        return axes | {"threads": self.threads} if self.threads else axes

    @property
    def dtype(self) -> str:
        return COMPUTE.get(self.weights, "int8")

    def flops(self) -> float:
        """Two per weight and token of the matrices, four per head element and cached token of attention.

        The vocabulary's matrix counts once for a prompt: only its last token is asked for.
        """
        config = self.config
        rows = 1 if self.phase == "pp" else self.tokens
        seen = sum(range(self.depth + 1, self.depth + self.tokens + 1))
        matrices = 2.0 * (config.layer_weights * self.tokens + config.vocabulary * config.dim * rows)
        return matrices + 4.0 * config.layers * config.heads * config.head_dim * seen

    def pass_bytes(self) -> float:
        """Bytes of one pass over the model: every matrix once, and the keys and values of the tokens before it."""
        config = self.config
        weights = (config.layer_weights + config.vocabulary * config.dim) * WEIGHTS[self.weights] / 8
        middle = self.depth + (0 if self.phase == "pp" else (self.tokens - 1) / 2)
        return weights + 2 * config.layers * config.kv_heads * config.head_dim * KV_BYTES[self.kv] * middle

    def bytes_moved(self) -> float:
        return self.pass_bytes() * self.passes()

    def passes(self) -> int:
        """How often the weights are needed: once for a prompt, once for each token that is written."""
        return 1 if self.phase == "pp" else self.tokens


def prefix(case: EdgeCase) -> Tokens:
    """The ``depth`` tokens before the timed ones; the same ones always."""
    return np.random.default_rng(case.depth).integers(0, case.config.vocabulary, case.depth, dtype=np.int32)


def make_inputs(case: EdgeCase, seed: int, device: Device) -> tuple[Tokens]:
    return (np.random.default_rng(seed).integers(0, case.config.vocabulary, case.tokens, dtype=np.int32),)


def workload(case: EdgeCase, decoder: Any) -> Call:
    """The pass of a case, driven through a contender's Decoder: tokens (T,) -> logits (1, V) or (T, V)."""
    step = case.tokens if case.phase == "pp" else 1

    def passed(tokens: Tokens) -> Logits:
        logits = np.empty((case.tokens // step, case.config.vocabulary), np.float32)
        decoder.rewind()
        for row, start in enumerate(range(0, case.tokens, step)):
            logits[row] = decoder(tokens[start : start + step])
        return logits

    return passed


def skip(case: EdgeCase, place: Place) -> str | None:
    if place.device != "cpu":
        return "a CPU's question"
    missing = artefacts.missing(case.model, case.weights)
    if missing is not None:
        return missing
    needed = 3 * case.config.layer_weights * WEIGHTS[case.weights] / 8
    return None if needed < place.memory_bytes else "three copies of the weights do not fit into the memory"


def _test_cases() -> tuple[EdgeCase, ...]:
    return (
        *(EdgeCase("tiny_random", "pp", 1, weights=weights) for weights in ("f32", "q8_0", "q4_0")),
        EdgeCase("tiny_random", "pp", 63),
        EdgeCase("tiny_random", "pp", 100, 7, weights="f32", threads=1),
        EdgeCase("tiny_random", "pp", 37, 64, weights="q8_0"),
        EdgeCase("tiny_random", "tg", 1, weights="f16"),
        EdgeCase("tiny_random", "tg", 5, weights="f32"),
        EdgeCase("tiny_random", "tg", 9, 31, weights="q8_0", threads=1),
        EdgeCase("tiny_random", "tg", 13, 127),
        EdgeCase("tiny_random", "tg", 4, 33, kv="q8_0"),
    )


def _bench_cases() -> tuple[EdgeCase, ...]:
    small, large = "smollm2_135m", "tinyllama_1b1_random"
    return (
        EdgeCase(small, "tg", 32),
        EdgeCase(small, "pp", 128),
        EdgeCase(large, "tg", 32),
        EdgeCase(large, "pp", 128),
        EdgeCase(small, "tg", 32, 2048),
        EdgeCase(small, "tg", 32, 128),
        EdgeCase(small, "tg", 32, threads=1),
        EdgeCase(small, "pp", 128, threads=1),
        EdgeCase(small, "tg", 32, 2048, kv="q8_0"),
        EdgeCase(small, "pp", 512),
        EdgeCase(small, "tg", 128),
        *(EdgeCase(small, phase, count, weights=kind)
          for kind in ("q8_0", "q4_k_m", "f16") for phase, count in (("tg", 32), ("pp", 128))),
        EdgeCase(large, "tg", 32, 1984),
        EdgeCase(large, "tg", 32, 128),
        EdgeCase(large, "tg", 32, weights="q4_k_m"),
        EdgeCase(large, "pp", 512),
        *(EdgeCase("tinyllama_1b1", phase, count) for phase, count in (("tg", 32), ("pp", 128))),
    )  # fmt: skip


NOTES = """\
Every contender gets the same file: the quantised blocks of a GGUF are its weights, whatever order it repacks them in.
In f32, f16, q8_0 and q4_0 every matrix is of that kind, embedding and vocabulary included, so that runtimes that have
no mixed formats can answer; q4_k_m is llama.cpp's own mix. Rows of "random" weights have the shapes of a model and
values nobody trained: time and memory do not depend on them.

pp128 is a prompt of 128 tokens in one call, answered by the logits after its last token. tg32 is 32 tokens, each
evaluated alone: a contender sees a token only after it has given the logits of the one before, so nothing can be
batched. d2048 says that 2048 tokens were evaluated before the clock started. Tokens are drawn at random, so neither a
tokeniser nor sampling is part of the time. Times are per token; the first token of a prompt comes after the whole
call, and first_answer_s is that with loading the model in a process of its own, resident_bytes that process's peak.

The limit of a token that is written is memory: all weights and the cached keys and values are read for each. Of the
bytes of a pass as many as fit into the last-level cache may still be there from the pass before and are not counted, so
"of limit" of a small model reads lower than its share of the bandwidth. A prompt is limited by arithmetic, in int8
beside quantised weights.

Answers are compared with a numpy computation on the dequantised weights, in float64 for small models. Runtimes round
activations to int8 beside quantised weights; the bounds allow twice what that costs over the products a token passes,
and the best token must be among the reference's best. A cache kv-q8_0 is 8-bit; otherwise at least 16 bits are asked.

ort_plain, ort_copied_cache, ort_no_cache and ort_fp32_activations each leave out one thing ort_fused does: fused
operators, a cache that is shared instead of copied, a cache at all, 8-bit activations. What an idea is worth is the
distance between two rows."""

TRACK = Track(
    name="edge_llm",
    question="Which runtime gives the next token of a Llama model soonest on a small machine?",
    version="1",
    baseline="llama_cpp",
    test_cases=_test_cases(),
    bench_cases=_bench_cases(),
    make_inputs=make_inputs,
    gate=gate,
    workload=workload,
    skip=skip,
    timing=Timing(max_blocks=20, budget_s=20.0, ratio_halfwidth=0.02, deadline_s=900.0),
    protocol="inference",
    item="token",
    items=lambda case: case.tokens,
    rereads=EdgeCase.passes,
    data=artefacts.data,
    on_request="3 hours",
    notes=NOTES,
)
