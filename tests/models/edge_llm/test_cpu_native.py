"""The C++ decoder beyond the track's cases: every way through the arithmetic, threads, memory, and what it refuses."""

from __future__ import annotations

import ctypes
import gc
import platform
import struct
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from archbench.hardware import native
from archbench.models.edge_llm import TRACK, EdgeCase, Logits, Tokens, gate, make_inputs, workload
from archbench.models.edge_llm import cpu_native as contender
from archbench.models.edge_llm._config import LlamaConfig
from archbench.models.edge_llm._gate import agreement, bound
from archbench.models.edge_llm._reference import evaluate, vocabulary
from archbench.models.edge_llm._reference import logits as reference
from archbench.models.edge_llm._weights import open_weights
from archbench.models.edge_llm.cpu_native import MATRICES, SOURCES, NativeDecoder, build, refusal
from archbench.track import Unavailable
from emulated_arm import ARMS, emulated

pytest.importorskip("gguf", reason="model files are written with the package gguf")

# Wider instructions of this processor are left out, so that the paths of smaller ones run here too.
WAYS: dict[str, tuple[str, ...]] = {"native": ()}
if platform.machine() == "x86_64":
    WAYS["avx2"] = ("-mno-avx512f",)
    WAYS["plain"] = ("-mno-avx512f", "-mno-avx2", "-mno-avx")  # 4 lanes, as NEON's
TEXT = EdgeCase("tiny_random", "tg", 5, 126, threads=1)  # crosses a chunk of the cache
PROMPT = EdgeCase("tiny_random", "pp", 21, 120, threads=1)
CASES = [
    *TRACK.test_cases,
    *(replace(TEXT, weights=weights) for weights in ("f32", "f16", "q8_0")),
    replace(TEXT, weights="f32", kv="q8_0"),
    PROMPT,
    replace(PROMPT, kv="q8_0"),
]
EMULATED = [replace(TEXT, threads=2), replace(TEXT, weights="q8_0", tokens=3), replace(PROMPT, kv="q8_0")]


@pytest.fixture(params=WAYS, scope="module")
def library(request: pytest.FixtureRequest) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(native.build(SOURCES, WAYS[request.param], (MATRICES,))))
    except Unavailable as reason:
        pytest.skip(str(reason))


def tokens(case: EdgeCase, seed: int = 3) -> Tokens:
    return make_inputs(case, seed, "cpu")[0]


def answer(case: EdgeCase, decoder: NativeDecoder) -> Logits:
    logits: Logits = workload(case, decoder)(tokens(case))
    return logits


@cache
def expected(case: EdgeCase) -> Any:
    return reference(case, tokens(case)).astype(np.float64)


def right(case: EdgeCase, logits: Logits) -> None:
    """The gate, with one reference for all ways."""
    error = agreement(logits.astype(np.float64), expected(replace(case, threads=None)), bound(case))
    assert error > 0, f"{case.slug}: not the reference's own answer"


def test_every_way_through_the_arithmetic_is_right(library: ctypes.CDLL) -> None:
    for case in CASES:
        decoder = NativeDecoder(library, open_weights(case), case)
        right(case, answer(case, decoder))


@pytest.mark.parametrize("case", [TEXT, PROMPT, replace(TEXT, kv="q8_0")], ids=lambda case: case.slug)
def test_any_number_of_threads_gives_the_same_bits(library: ctypes.CDLL, case: EdgeCase) -> None:
    found = []
    for threads in (1, 2, 3, 7):
        other = replace(case, threads=threads)
        found.append(answer(other, NativeDecoder(library, open_weights(other), other)))
    assert all(np.array_equal(found[0], logits) for logits in found[1:])


@pytest.mark.parametrize("case", [TEXT, PROMPT, replace(TEXT, depth=0)], ids=lambda case: case.slug)
def test_after_rewinding_it_answers_as_a_fresh_one(case: EdgeCase) -> None:
    decoder = build(case)
    workload(case, decoder)(tokens(case, seed=8))  # other tokens lie where these will
    np.testing.assert_array_equal(answer(case, decoder), answer(case, build(case)))


@pytest.mark.parametrize("parts", [(249,), (100, 149), (12, 13, 1, 223), (1,) * 249], ids=lambda parts: f"{len(parts)}")
def test_a_prompt_may_come_in_parts(parts: tuple[int, ...]) -> None:
    case = EdgeCase("tiny_random", "pp", 249, weights="f32", threads=2)
    decoder, given, start = build(case), tokens(case), 0
    for part in parts:
        logits = decoder(given[start : start + part])
        start += part
    assert gate(case, (given,), logits[None]) < 1e-5


class Odd:
    """Weights of a model whose sizes fill no vector and divide by nothing."""

    config = LlamaConfig(vocabulary=67, dim=37, layers=2, heads=6, kv_heads=2, head_dim=10, hidden=43, context=512)
    output = "output.weight"

    def __init__(self) -> None:
        self._random, self._made = np.random.default_rng(5), {}

    def kind(self, name: str) -> str:
        return "f32"

    def matrices(self) -> list[str]:
        return [self.output]

    def floats(self, name: str, rows: Any = slice(None)) -> Any:
        sizes = {"q": (60, 37), "k": (20, 37), "v": (20, 37), "output": (37, 60), "gate": (43, 37), "up": (43, 37)}
        sizes |= {"down": (37, 43), "norm": (37,), "embd.weight": (67, 37), "output.weight": (67, 37)}
        key = next((end for end in ("embd.weight", "norm") if end in name), name.split("_")[-1].removesuffix(".weight"))
        size = sizes["output.weight" if name == self.output else key]
        if name not in self._made:
            self._made[name] = self._random.standard_normal(size, np.float32) / np.float32(4)
        return self._made[name][rows]

    def raw(self, name: str) -> Any:
        return self.floats(name).view(np.uint8)


def test_sizes_that_fill_no_vector_and_a_prompt_of_two_pieces(library: ctypes.CDLL) -> None:
    weights: Any = Odd()
    case = EdgeCase("stories260k", "pp", 300, weights="f32", threads=2)
    given = make_inputs(EdgeCase("tiny_random", "pp", 200), 3, "cpu")[0] % Odd.config.vocabulary
    given = np.concatenate([given, given])[:300]
    decoder = NativeDecoder(library, weights, case)
    prompt = decoder(given[:297]).copy()
    rows = [prompt, *(decoder(given[t : t + 1]).copy() for t in range(297, 300))]
    want = vocabulary(weights, evaluate(weights, given, ())[0][-4:])
    assert agreement(np.stack(rows).astype(np.float64), want, bound(case)) < 1e-5


def test_behind_the_last_position_it_refuses() -> None:
    decoder = build(TEXT)
    decoder(tokens(TEXT))
    with pytest.raises(ValueError, match="1 tokens behind 131: the cache has room for 131"):
        decoder(tokens(TEXT)[:1])
    decoder.rewind()
    decoder(tokens(TEXT))


@pytest.mark.parametrize("token", [-1, 512])
def test_a_token_that_is_none_is_refused(token: int) -> None:
    with pytest.raises(ValueError, match="the vocabulary has 512"):
        build(TEXT)(np.array([3, token], np.int32))


def test_what_it_cannot_run_is_said() -> None:
    with pytest.raises(Unavailable, match="f32, f16, q8_0, q4_0 only, not the mix q4_k_m"):
        build(replace(TEXT, weights="q4_k_m"))
    odd: Any = Odd()
    assert refusal(odd, replace(TEXT, weights="f32")) is None
    assert refusal(odd, replace(TEXT, weights="f32", kv="q8_0")) == "a cache in q8_0 needs heads of a multiple of 32"
    assert (
        refusal(odd, replace(TEXT, weights="f16"))
        == "matrices of one kind only, f32, f16, q8_0, q4_0; this file has f32"
    )


def test_nothing_of_it_stays_behind() -> None:
    process = psutil.Process()

    def used() -> int:
        gc.collect()
        return int(process.memory_info().rss)

    build(TEXT)
    before = used()
    for _ in range(20):
        build(TEXT)(tokens(TEXT))
    assert used() - before < 8e6  # a decoder has more than 2 MB


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from archbench.models.edge_llm import EdgeCase, cpu_native\n"
        "case = EdgeCase('tiny_random', 'tg', 1)\n"
        "import numpy; print(cpu_native.build(case)(numpy.zeros(1, numpy.int32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(512,)\n", done.stderr


class Emulated:
    """The library for another processor, in a process of an emulator. It stands where the library would."""

    def __init__(self, config: LlamaConfig, *command: str) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        given, taken, bytes_at = self._process.stdin, self._process.stdout, ctypes.string_at

        def tell(command: str, body: bytes, *numbers: int) -> None:
            given.write(struct.pack("5q", ord(command), *numbers, *[0] * (3 - len(numbers)), len(body)) + body)

        def new(sizes: Any) -> int:
            given.write(bytes(sizes._obj))
            return 1

        def matrix(_: int, layer: int, part: int, address: int, stride: int, count: int) -> None:
            tell("M", bytes_at(address, stride * count), layer, part, count)

        def norm(_: int, i: int, address: int) -> None:
            tell("N", bytes_at(address, 4 * config.dim), i)

        def embedding(_: int, address: int, stride: int) -> None:
            tell("E", bytes_at(address, stride * config.vocabulary), stride)

        def step(_: int, address: int, count: int, position: int, logits: int) -> int:
            tell("S", bytes_at(address, 4 * count), count, position)
            given.flush()
            ctypes.memmove(logits, taken.read(4 * config.vocabulary), 4 * config.vocabulary)
            return 0

        self.archbench_edge_new, self.archbench_edge_free = new, lambda _: None
        self.archbench_edge_matrix, self.archbench_edge_norm, self.archbench_edge_embedding = matrix, norm, embedding
        self.archbench_edge_step = step

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


@pytest.mark.parametrize("flag", ARMS.values(), ids=ARMS)
def test_neon_is_right_too(flag: str, tmp_path: Path) -> None:
    source = Path(__file__).with_name("emulated_decoder.cpp")
    command = emulated(source, flag, tmp_path / "decoder", SOURCES, MATRICES)
    for case in EMULATED:
        with Emulated(case.config, *command) as library:
            right(case, answer(case, NativeDecoder(library, open_weights(case), case)))


def test_the_sources_are_in_the_package() -> None:
    assert {path.suffix for path in SOURCES.iterdir()} == {".cpp", ".hpp"}
    assert contender.CONTENDER.device == "cpu"
