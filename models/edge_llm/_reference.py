"""The Llama decoder in numpy: what every contender is compared with.

All tokens of a call are evaluated together behind the prefix, layer by layer, with a causal mask; nothing is written
into a cache that a later layer reads, so that this shares no mechanism with the decoders it judges. Weights are
dequantised one layer at a time and dropped. Small models run in float64; large ones in float32, whose error (1e-6) is
far below that of int8 activations. The keys and values of a prefix are kept, so that a question asked again pays for
its new tokens only.

Letters: T new tokens, P prefix, S = P + T, H query heads, G query heads a key head has, K key heads, D head size,
M model width.

Source: Touvron et al. 2023, arXiv:2302.13971; Su et al. 2021, arXiv:2104.09864 (rotary); Ainslie et al. 2023,
arXiv:2305.13245 (grouped queries)
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from archbench.models.edge_llm._weights import Weights, open_weights

if TYPE_CHECKING:
    from archbench.models.edge_llm import EdgeCase

Array = npt.NDArray[Any]
Memory = tuple[tuple[Array, Array], ...]  # keys_KPD and values_KPD of each layer

DOUBLE = 20_000_000  # weights up to which a model runs in float64
QUERIES = 256  # whose attention is computed at a time


def logits(case: EdgeCase, tokens: npt.NDArray[np.int32]) -> Array:
    """The answer to a case: logits (1, V) after the last token of a prompt, or (T, V) after each token."""
    weights = open_weights(case)
    memory = _prefix(case.model, case.weights, case.depth, weights.path, weights.path.stat().st_mtime_ns)
    hidden_TM, _ = evaluate(weights, tokens, memory)
    return vocabulary(weights, hidden_TM[-1:] if case.phase == "pp" else hidden_TM)


@lru_cache(maxsize=2)
def _prefix(model: str, kind: str, depth: int, path: Path, changed_ns: int) -> Memory:
    """Keys and values of the tokens before a case's; of this file, as it is now."""
    from archbench.models.edge_llm import EdgeCase, prefix

    case = EdgeCase(model, "tg", 1, depth, kind)
    return evaluate(open_weights(path), prefix(case), ())[1] if depth else ()


def precision(weights: Weights) -> type[np.floating]:
    config = weights.config
    return np.float64 if config.layer_weights + config.vocabulary * config.dim <= DOUBLE else np.float32


def evaluate(weights: Weights, tokens: npt.NDArray[np.int32], memory: Memory) -> tuple[Array, Memory]:
    """Hidden states (T, M) before the vocabulary, and keys and values of prefix and tokens."""
    config, dtype = weights.config, precision(weights)
    stream_TM = weights.floats("token_embd.weight", tokens).astype(dtype)
    before = memory[0][0].shape[1] if memory else 0
    turn = _turns(before + np.arange(len(tokens)), config.head_dim, config.rope_theta)
    seen = []

    for layer in range(config.layers):

        def matrix(part: str, layer: int = layer) -> Array:
            return weights.floats(f"blk.{layer}.{part}.weight").astype(dtype, copy=False)

        normed_TM = _rms_norm(stream_TM, matrix("attn_norm"), config.norm_eps)
        queries_HTD = _rotate(_heads(normed_TM @ matrix("attn_q").T, config.heads), turn)
        keys_KSD = _rotate(_heads(normed_TM @ matrix("attn_k").T, config.kv_heads), turn)
        values_KSD = _heads(normed_TM @ matrix("attn_v").T, config.kv_heads)
        if memory:
            keys_KSD = np.concatenate([memory[layer][0], keys_KSD], axis=1)
            values_KSD = np.concatenate([memory[layer][1], values_KSD], axis=1)
        seen.append((keys_KSD, values_KSD))
        stream_TM = stream_TM + _attention(queries_HTD, keys_KSD, values_KSD, before) @ matrix("attn_output").T

        normed_TM = _rms_norm(stream_TM, matrix("ffn_norm"), config.norm_eps)
        gate_TF = normed_TM @ matrix("ffn_gate").T
        gate_TF /= 1 + np.exp(-gate_TF)
        gate_TF *= normed_TM @ matrix("ffn_up").T
        stream_TM = stream_TM + gate_TF @ matrix("ffn_down").T

    return _rms_norm(stream_TM, weights.floats("output_norm.weight").astype(dtype), config.norm_eps), tuple(seen)


def vocabulary(weights: Weights, hidden_TM: Array) -> Array:
    """Hidden states to logits (T, V); the matrix is dequantised in pieces."""
    rows, dtype = weights.config.vocabulary, precision(weights)
    pieces = [slice(start, min(start + 4096, rows)) for start in range(0, rows, 4096)]
    return np.concatenate(
        [hidden_TM @ weights.floats(weights.output, piece).astype(dtype, copy=False).T for piece in pieces], axis=1
    )


def _rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def _heads(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1).transpose(1, 0, 2)


def _turns(positions: Array, head_dim: int, theta: float) -> Array:
    """exp(i angle) of each position (T) and rotary pair (D/2)."""
    angles = positions[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    return np.exp(1j * angles)


def _rotate(x: Array, turn: Array) -> Array:
    """Neighbours 2i and 2i + 1 are real and imaginary part of one number."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    turned = pairs * turn
    return np.stack([turned.real, turned.imag], axis=-1).reshape(x.shape).astype(x.dtype)


def _attention(queries_HTD: Array, keys_KSD: Array, values_KSD: Array, before: int) -> Array:
    """Causal attention of grouped queries: (T, H x D)."""
    heads, tokens, size = queries_HTD.shape
    groups = len(keys_KSD)
    grouped = queries_HTD.reshape(groups, heads // groups, tokens, size)
    out = np.empty_like(grouped)
    for start in range(0, tokens, QUERIES):
        rows = np.arange(start, min(start + QUERIES, tokens))
        seen = slice(before + rows[-1] + 1)
        keys, values = keys_KSD[:, None, seen], values_KSD[:, None, seen]
        scores = grouped[:, :, rows] @ keys.swapaxes(-1, -2) / np.sqrt(size).astype(grouped.dtype)
        scores[..., np.arange(keys.shape[2]) > before + rows[:, None]] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        out[:, :, rows] = scores @ values
    return out.transpose(2, 0, 1, 3).reshape(tokens, heads * size)
