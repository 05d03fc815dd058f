"""Every numbered equation of docs/derivations/edge_llm.md, by counting in a model that is there or in float64.

A test carries the number of its equation in its name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from archbench.cells import Ceiling
from archbench.harness.physics import floor
from archbench.models.edge_llm import KV_BYTES, TRACK, WEIGHTS, EdgeCase
from archbench.models.edge_llm import _reference as reference
from archbench.models.edge_llm._weights import Weights, open_weights
from archbench.models.edge_llm._weights_blocks import BLOCK, floats, quantised

CASE = EdgeCase("tiny_random", "tg", 5, 31)
PROMPT = replace(CASE, phase="pp", tokens=37, depth=0)
TINYLLAMA = EdgeCase("tinyllama_1b1_random", "tg", 32)
RATE, READ = 8e11, 32e9  # C and R


def draw(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def weights() -> Weights:
    return open_weights(CASE)


def rounded(a: Any) -> tuple[Any, Any]:
    """p and t of equation (4), block by block."""
    blocks = a.reshape(*a.shape[:-1], -1, BLOCK)
    t = np.abs(blocks).max(-1, keepdims=True) / 127
    return np.rint(blocks / t), t


def test_equation_1_a_block_stands_for_its_weights() -> None:
    raw = quantised("q4_0", draw(4, 96).astype(np.float32))
    blocks = raw.reshape(4, 3, 18)
    s = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float64)
    q = np.concatenate((blocks[..., 2:] & 15, blocks[..., 2:] >> 4), axis=-1).astype(np.float64)
    assert q.min() == 0
    assert q.max() == 15
    assert np.array_equal((s * (q - 8)).reshape(4, 96), floats("q4_0", raw))


def test_equation_2_bits_of_a_weight() -> None:
    assert 8 * quantised("q4_0", draw(4, 96).astype(np.float32)).size / (4 * 96) == WEIGHTS["q4_0"] == 4.5


def test_equation_3_the_same_weights_in_two_orders() -> None:
    onnx_data = pytest.importorskip(
        "archbench.models.edge_llm._onnx_data", reason="no onnx installed", exc_type=ImportError
    )
    raw = quantised("q4_0", draw(4, 96).astype(np.float32))
    packed, scales = onnx_data.regroup(raw, "q4_0")
    b = raw.reshape(4, 3, 18)[..., 2:]
    q = np.empty((4, 3, BLOCK))
    q[..., :16], q[..., 16:] = b & 15, b >> 4
    again = np.empty_like(q)
    again[..., 0::2], again[..., 1::2] = packed & 15, packed >> 4
    assert np.array_equal(again, q)
    assert np.array_equal((scales[..., None] * (again - 8)).reshape(4, 96), floats("q4_0", raw))


def test_equation_4_nothing_moves_by_more_than_half_a_step() -> None:
    a = draw(100, 64)
    p, t = rounded(a)
    assert np.array_equal(p, np.rint(p))
    assert np.abs(p).max() == 127
    off = np.abs(a.reshape(p.shape) - t * p)
    assert (off <= t / 2 * (1 + 1e-12)).all()
    assert off.max() > 0.49 * t.max(), "the bound is met"


def test_equation_5_the_eight_is_subtracted_once() -> None:
    raw = quantised("q4_0", draw(16, BLOCK).astype(np.float32))
    s = np.ascontiguousarray(raw[:, :2]).view(np.float16).astype(np.float64)
    q = np.concatenate((raw[:, 2:] & 15, raw[:, 2:] >> 4), axis=-1).astype(np.int64)
    p, t = rounded(draw(BLOCK))
    p = p[0].astype(np.int64)
    direct = floats("q4_0", raw).astype(np.float64) @ (t[0] * p)
    assert np.allclose((s * t[0])[:, 0] * (q @ p - 8 * p.sum()), direct, rtol=1e-12)
    assert BLOCK * 15 * 127 == 60960
    assert 35_000 < (2**31 - 1) // 60960 < 36_000


def test_equation_6_what_rounding_costs() -> None:
    w, a = draw(1024), draw(20_000, 1024, seed=1)
    p, t = rounded(a)
    missed = np.einsum("rbj,bj->r", a.reshape(p.shape) - t * p, w.reshape(-1, BLOCK))
    said = (t[..., 0] ** 2 * (w.reshape(-1, BLOCK) ** 2).sum(-1)).sum(-1) / 12
    assert np.mean(missed**2) == pytest.approx(said.mean(), rel=0.03)  # 20,000 draws: one part in a hundred
    assert np.sqrt(np.mean(missed**2) / np.mean((a @ w) ** 2)) == pytest.approx(1 / 186, rel=0.02)
    assert 1 / t.mean() == pytest.approx(54.5, rel=0.01)


def test_equation_7_weights_of_the_layers() -> None:
    matrices = [name for name in weights().matrices() if name.startswith("blk.")]
    counted = sum(math.prod(weights().shape(name)) for name in matrices)
    assert counted == weights().config.layer_weights
    c = weights().config
    assert counted == c.layers * (c.dim * c.head_dim * (2 * c.heads + 2 * c.kv_heads) + 3 * c.dim * c.hidden)


def test_equation_8_bytes_of_the_weights() -> None:
    counted = sum(weights().raw(name).size for name in weights().matrices())
    assert counted == replace(CASE, depth=0, tokens=1).pass_bytes()


def test_equation_9_bytes_of_the_cache() -> None:
    _, memory = reference.evaluate(weights(), np.arange(31, dtype=np.int32), ())
    elements = sum(keys.size + values.size for keys, values in memory)
    without = replace(CASE, depth=0, tokens=1).pass_bytes()
    assert KV_BYTES["f16"] * elements == replace(CASE, tokens=1).pass_bytes() - without
    assert 34 / 32 * elements == replace(CASE, tokens=1, kv="q8_0").pass_bytes() - without


def test_equation_10_the_least_time_of_a_token() -> None:
    found = floor(TINYLLAMA, [Ceiling("read", READ, "B/s")], cache_bytes=1 << 25, rereads=TINYLLAMA.passes())
    assert found is not None
    assert found.kind == "bandwidth"
    per_token = found.seconds / 32
    assert per_token == pytest.approx((TINYLLAMA.pass_bytes() - (1 << 25)) / READ, rel=1e-12)


def test_equation_11_the_depth_on_average() -> None:
    alone = [replace(CASE, depth=31 + i, tokens=1).bytes_moved() for i in range(5)]
    assert sum(alone) == pytest.approx(CASE.bytes_moved(), rel=1e-12)


def test_equation_12_growth_from_depth_to_depth() -> None:
    shallow, deep = (replace(TINYLLAMA, tokens=1, depth=n).pass_bytes() for n in (128, 1984))
    c = TINYLLAMA.config
    kept = 2 * c.layers * c.kv_heads * c.head_dim * 2
    all_weights = (c.layer_weights + c.vocabulary * c.dim) * 4.5 / 8
    assert deep / shallow == pytest.approx((all_weights + kept * 1984) / (all_weights + kept * 128), rel=1e-12)
    assert 1.0 < deep / shallow < 1.1, "on these shapes the weights outweigh the cache"


def test_equation_13_operations_of_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiplications of the reference, counted: it masks the future instead of leaving it out."""
    counted = 0

    class Counting(np.ndarray):
        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
            nonlocal counted
            plain = [x.view(np.ndarray) if isinstance(x, Counting) else x for x in inputs]
            out = options.pop("out", None)
            if out is not None:
                options["out"] = tuple(x.view(np.ndarray) if isinstance(x, Counting) else x for x in out)
            result = getattr(ufunc, method)(*plain, **options)
            if ufunc is np.matmul:
                counted += 2 * result.size * plain[0].shape[-1]
            return result.view(Counting) if isinstance(result, np.ndarray) else result

    original, turn = Weights.floats, reference._rotate
    monkeypatch.setattr(reference, "_rotate", lambda *args: turn(*args).view(Counting))  # np.stack makes plain arrays
    monkeypatch.setattr(Weights, "floats", lambda *args: original(*args).view(Counting))
    monkeypatch.setattr(reference, "QUERIES", 1)  # token by token, no score of the future is computed
    reference.logits(PROMPT, np.arange(37, dtype=np.int32))
    assert counted == PROMPT.flops()


def test_equation_14_where_bytes_and_operations_meet() -> None:
    c = TINYLLAMA.config
    star = RATE * replace(TINYLLAMA, tokens=1).pass_bytes() / (2 * c.layer_weights * READ)
    short, long = (replace(TINYLLAMA, phase="pp", tokens=count) for count in (math.floor(star), math.ceil(star)))
    without_attention = [2 * c.layer_weights * case.tokens / RATE for case in (short, long)]
    assert without_attention[0] <= short.bytes_moved() / READ
    assert without_attention[1] >= long.bytes_moved() / READ
    assert 1 < star < 128, "both phases of the track are on their own side"


def test_equation_15_cached_equals_evaluated_at_once() -> None:
    tokens = np.random.default_rng(3).integers(0, CASE.config.vocabulary, 24, dtype=np.int32)
    at_once, _ = reference.evaluate(weights(), tokens, ())
    memory: Any = ()
    for i in range(24):
        one, memory = reference.evaluate(weights(), tokens[i : i + 1], memory)
        assert np.allclose(one[0], at_once[i], rtol=1e-9, atol=1e-12)


def test_equation_16_what_the_cache_can_gain() -> None:
    def gain(n: int) -> float:
        whole = replace(TINYLLAMA, phase="pp", tokens=n + 1)
        step = replace(TINYLLAMA, tokens=1, depth=n)
        return max(whole.flops() / RATE, whole.bytes_moved() / READ) / (step.bytes_moved() / READ)

    assert gain(0) == 1
    gains = [gain(n) for n in (0, 64, 256, 1024)]
    assert gains == sorted(gains)
    assert gain(1024) > 50, "a prompt of 1024 tokens for each token that is written"


def rotary(x: Any, position: int) -> Any:
    """Pairs of neighbours, by the definition."""
    size = x.shape[-1]
    out = np.empty_like(x)
    for i in range(size // 2):
        angle = position * 10_000.0 ** (-2 * i / size)
        a, b = x[..., 2 * i], x[..., 2 * i + 1]
        out[..., 2 * i] = a * math.cos(angle) - b * math.sin(angle)
        out[..., 2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def test_equation_17_scores_depend_on_the_distance() -> None:
    q, x = draw(64), draw(64, seed=1)
    for m, k in ((5, 3), (70, 70), (2, 200)):
        assert rotary(q, m) @ rotary(x, k) == pytest.approx(rotary(q, m - k) @ x, rel=1e-10)


def test_equation_18_halves_become_neighbours() -> None:
    order = np.arange(64).reshape(2, 32).T.reshape(-1)
    assert [int(order[2 * i]) for i in range(32)] == list(range(32))
    assert [int(order[2 * i + 1]) for i in range(32)] == list(range(32, 64))

    def halves(x: Any, position: int) -> Any:
        angles = position * 10_000.0 ** (-2 * np.arange(32) / 64)
        a, b = x[:32], x[32:]
        return np.concatenate((a * np.cos(angles) - b * np.sin(angles), a * np.sin(angles) + b * np.cos(angles)))

    q, x = draw(64), draw(64, seed=1)
    assert halves(q, 9) @ halves(x, 4) == pytest.approx(rotary(q[order], 9) @ rotary(x[order], 4), rel=1e-10)


def test_equation_19_perplexity() -> None:
    """Of a uniform model it is the number of tokens; twice as sure of each token, half of it."""
    chance = np.full(100, 1 / 512)
    assert math.exp(-np.mean(np.log(chance))) == pytest.approx(512, rel=1e-12)
    assert math.exp(-np.mean(np.log(2 * chance))) == pytest.approx(256, rel=1e-12)


def test_the_track_counts_what_the_page_counts() -> None:
    for case in TRACK.bench_cases:
        assert case.bytes_moved() == case.pass_bytes() * TRACK.rereads(case)
        assert TRACK.items(case) == case.tokens
