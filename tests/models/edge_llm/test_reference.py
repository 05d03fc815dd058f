"""The reference is the model: one token at a time, loop by loop, gives the same numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from archbench.models.edge_llm import EdgeCase, make_inputs, prefix
from archbench.models.edge_llm import _reference as reference
from archbench.models.edge_llm._weights import Weights, open_weights

pytest.importorskip("gguf", reason="model files are written with the package gguf")

CASE = EdgeCase("tiny_random", "tg", 3, 5, weights="q4_0")


def plain(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Logits after each token: heads, positions and pairs are loops, keys and values are lists."""
    config = weights.config
    w = {name: weights.floats(name).astype(np.float64) for name in weights.names}
    keys: list[list[np.ndarray]] = [[] for _ in range(config.layers)]
    values: list[list[np.ndarray]] = [[] for _ in range(config.layers)]
    out = []
    for position, token in enumerate(tokens):
        x = w["token_embd.weight"][token]
        for layer in range(config.layers):
            p = {name.split(".")[2]: value for name, value in w.items() if name.startswith(f"blk.{layer}.")}
            normed = norm(x, p["attn_norm"], config.norm_eps)
            query = turned(p["attn_q"] @ normed, position, config.head_dim, config.rope_theta)
            keys[layer].append(turned(p["attn_k"] @ normed, position, config.head_dim, config.rope_theta))
            values[layer].append(p["attn_v"] @ normed)
            mixed = np.zeros(config.heads * config.head_dim)
            for head in range(config.heads):
                mine = slice(head * config.head_dim, (head + 1) * config.head_dim)
                group = head // (config.heads // config.kv_heads)
                theirs = slice(group * config.head_dim, (group + 1) * config.head_dim)
                scores = [math.exp(query[mine] @ key[theirs] / math.sqrt(config.head_dim)) for key in keys[layer]]
                for score, value in zip(scores, values[layer], strict=True):
                    mixed[mine] += score / sum(scores) * value[theirs]
            x = x + p["attn_output"] @ mixed
            normed = norm(x, p["ffn_norm"], config.norm_eps)
            gate = p["ffn_gate"] @ normed
            x = x + p["ffn_down"] @ (gate / (1 + np.exp(-gate)) * (p["ffn_up"] @ normed))
        out.append(w[weights.output] @ norm(x, w["output_norm.weight"], config.norm_eps))
    return np.array(out)


def norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / math.sqrt(x @ x / len(x) + eps) * weight


def turned(x: np.ndarray, position: int, head_dim: int, theta: float) -> np.ndarray:
    out = x.copy()
    for start in range(0, len(x), head_dim):
        for pair in range(head_dim // 2):
            angle = position / theta ** (2 * pair / head_dim)
            a, b = x[start + 2 * pair], x[start + 2 * pair + 1]
            out[start + 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[start + 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def test_it_is_the_model_written_as_loops() -> None:
    (tokens,) = make_inputs(CASE, 0, "cpu")
    want = plain(open_weights(CASE), np.concatenate([prefix(CASE), tokens]))
    generated = reference.logits(CASE, tokens)
    assert generated.dtype == np.float64
    assert np.linalg.norm(generated - want[5:]) < 1e-12 * np.linalg.norm(want[5:])
    prompt = reference.logits(replace(CASE, phase="pp"), tokens)
    assert prompt.shape == (1, 512)
    assert np.allclose(prompt, generated[-1:], rtol=0, atol=1e-12)


def test_tokens_after_one_another_give_what_they_give_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = open_weights(CASE)
    tokens = np.random.default_rng(4).integers(0, 512, 40, dtype=np.int32)
    together, memory = reference.evaluate(weights, tokens, ())
    first, part = reference.evaluate(weights, tokens[:17], ())
    monkeypatch.setattr(reference, "QUERIES", 7)  # attention is computed in pieces
    second, whole = reference.evaluate(weights, tokens[17:], part)
    assert np.allclose(np.concatenate([first, second]), together, rtol=0, atol=1e-12)
    for (keys, values), (other_keys, other_values) in zip(memory, whole, strict=True):
        assert np.allclose(keys, other_keys, rtol=0, atol=1e-12)
        assert np.allclose(values, other_values, rtol=0, atol=1e-12)


def test_large_models_run_in_float32_and_differ_by_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    (tokens,) = make_inputs(CASE, 0, "cpu")
    exact = reference.logits(CASE, tokens)
    monkeypatch.setattr(reference, "DOUBLE", 0)
    reference._prefix.cache_clear()
    rounded = reference.logits(CASE, tokens)
    reference._prefix.cache_clear()  # the other tests get a prefix in float64 again
    assert rounded.dtype == np.float32
    assert 0 < np.linalg.norm(rounded - exact) < 1e-5 * np.linalg.norm(exact)


def test_a_prefix_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASE, depth=11)
    lengths: list[int] = []
    evaluate = reference.evaluate

    def counted(weights: Weights, tokens: np.ndarray, memory: reference.Memory) -> tuple[np.ndarray, reference.Memory]:
        lengths.append(len(tokens))
        return evaluate(weights, tokens, memory)

    monkeypatch.setattr(reference, "evaluate", counted)
    reference._prefix.cache_clear()
    for seed in range(3):
        reference.logits(case, *make_inputs(case, seed, "cpu"))
    assert lengths == [11, 3, 3, 3]
