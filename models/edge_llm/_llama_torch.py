"""A Llama decoder in PyTorch, readable top to bottom: float32, with keys and values in a buffer that is made once.

A step writes its keys and values behind those of the tokens seen so far and attends to what is filled. Pairs that
rotary embeddings turn are neighbours. The query heads that share a key head are treated as rows of one: (K, G x T) rows
instead of H heads of T, so that no key is copied. Quantised weights are dequantised once; every product is in float32.
Modules have the names of the tensors in a model file.

``export`` writes one step as an ONNX graph whose memory goes in and comes out: ids, past keys and values -> logits,
keys and values, for any number of tokens.

Letters: T new tokens, P tokens before, S = P + T, H query heads, K key heads, G = H / K, D head size, M model width,
V vocabulary, C positions there may be.

Source: Touvron et al. 2023, arXiv:2302.13971; Su et al. 2021, arXiv:2104.09864; Ainslie et al. 2023, arXiv:2305.13245
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from archbench.hardware.cpu import usable_cores
from archbench.models.edge_llm import EdgeCase, Logits, Tokens, prefix
from archbench.models.edge_llm._config import LlamaConfig
from archbench.models.edge_llm._weights import Weights, open_weights
from archbench.track import Unavailable

OPSET = 21
ROOM = 48  # buffers hold a multiple, never a head's size or a case's tokens: a compiler takes equal sizes for one
PIECE = 512  # tokens of a prefix that are evaluated together
Turn = tuple[Tensor, Tensor]  # cosines and sines (T, D / 2)
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # new keys and values (K, T, D) -> all there are
Memory = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]  # the same of a layer


class Layer(nn.Module):
    """Attention and a gated feed-forward block, each behind a norm and beside the residual stream."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim, self.kv_heads = config.head_dim, config.kv_heads
        queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.attn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.attn_q = nn.Linear(config.dim, queries, bias=False)
        self.attn_k = nn.Linear(config.dim, keys, bias=False)
        self.attn_v = nn.Linear(config.dim, keys, bias=False)
        self.attn_output = nn.Linear(queries, config.dim, bias=False)
        self.ffn_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.ffn_gate = nn.Linear(config.dim, config.hidden, bias=False)
        self.ffn_up = nn.Linear(config.dim, config.hidden, bias=False)
        self.ffn_down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x_TM: Tensor, turn_TD: Turn, mask_TS: Tensor | None, remember: Remember) -> Tensor:
        x_TM = x_TM + self.attention(self.attn_norm(x_TM), turn_TD, mask_TS, remember)
        normed_TM = self.ffn_norm(x_TM)
        return x_TM + self.ffn_down(F.silu(self.ffn_gate(normed_TM)) * self.ffn_up(normed_TM))

    def attention(self, x_TM: Tensor, turn_TD: Turn, mask_TS: Tensor | None, remember: Remember) -> Tensor:
        tokens = x_TM.shape[0]
        queries_HTD = rotate(self._heads(self.attn_q(x_TM)), *turn_TD)
        keys_KSD, values_KSD = remember(
            rotate(self._heads(self.attn_k(x_TM)), *turn_TD), self._heads(self.attn_v(x_TM))
        )
        rows_KRD = queries_HTD.reshape(self.kv_heads, -1, self.head_dim)  # R = G x T
        mask_RS = None if mask_TS is None else mask_TS.repeat(rows_KRD.shape[1] // tokens, 1)
        batch = (rows_KRD[None], keys_KSD[None], values_KSD[None])  # of one: the exporter knows no other
        mixed_HTD = F.scaled_dot_product_attention(*batch, attn_mask=mask_RS).reshape(-1, tokens, self.head_dim)
        return self.attn_output(mixed_HTD.transpose(0, 1).flatten(1))

    def _heads(self, x_TM: Tensor) -> Tensor:
        return x_TM.unflatten(1, (-1, self.head_dim)).transpose(0, 1)


def rotate(x_HTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Neighbours 2i and 2i + 1 are turned by the angle of pair i."""
    even, odd = x_HTD[..., 0::2], x_HTD[..., 1::2]
    return torch.stack([even * cos_TD - odd * sin_TD, even * sin_TD + odd * cos_TD], dim=-1).flatten(-2)


class Llama(nn.Module):
    """The model. Its memory is the caller's."""

    cos_CD: Tensor
    sin_CD: Tensor

    def __init__(self, config: LlamaConfig, positions: int) -> None:
        super().__init__()
        self.token_embd = nn.Embedding(config.vocabulary, config.dim)
        self.blk = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.output_norm = nn.RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocabulary, bias=False)
        # In float64: an angle of a thousand radians keeps four digits in float32.
        speeds_D = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
        angles_CD = torch.outer(torch.arange(positions, dtype=torch.float64), speeds_D)
        self.register_buffer("cos_CD", angles_CD.cos().float(), persistent=False)
        self.register_buffer("sin_CD", angles_CD.sin().float(), persistent=False)

    def forward(self, ids_T: Tensor, places_T: Tensor, mask_TS: Tensor | None, memory: Memory) -> Tensor:
        """Logits (V,) after the last token. ``places_T`` are the tokens' positions, ``mask_TS`` what each may see."""
        turn_TD = (self.cos_CD[places_T], self.sin_CD[places_T])
        x_TM = self.token_embd(ids_T)
        for number, layer in enumerate(self.blk):
            x_TM = layer(x_TM, turn_TD, mask_TS, partial(memory, number))
        return self.output(self.output_norm(x_TM[-1]))


def load(weights: Weights, positions: int) -> Llama:
    """The model with the weights of a file in float32. Raises Unavailable where they do not fit into the memory."""
    config = weights.config
    needed = 4 * (config.layer_weights + (1 if config.tied else 2) * config.vocabulary * config.dim)
    free = psutil.virtual_memory().available
    if needed > free:
        raise Unavailable(f"the weights in float32 take {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free")
    with torch.device("meta"):
        model = Llama(config, 1)
    tensors = {name: torch.from_numpy(weights.floats(name)) for name in weights.names}
    tensors.setdefault("output.weight", tensors["token_embd.weight"])
    model.load_state_dict(tensors, assign=True)
    turned = Llama(replace(config, vocabulary=1, layers=0), positions)
    model.cos_CD, model.sin_CD = turned.cos_CD, turned.sin_CD
    return model.eval().requires_grad_(False)


class Decoder:
    """The model and its memory: buffers for the positions of a case."""

    def __init__(self, case: EdgeCase, compiled: bool = False) -> None:
        """``compiled``: tokens behind the prefix go through torch.compile, layer by layer. Raises Unavailable."""
        config, positions = case.config, case.depth + case.tokens
        self.model = load(open_weights(case), positions)
        room = positions // ROOM * ROOM + ROOM
        self.keys_LKCD = torch.zeros(config.layers, config.kv_heads, room, config.head_dim)
        self.values_LKCD = torch.zeros_like(self.keys_LKCD)
        self._threads = case.threads or usable_cores()
        self._depth, self._seen = case.depth, 0
        for start in range(0, case.depth, PIECE):
            self._run(self.step, prefix(case)[start : start + PIECE])
        self._layer = torch.compile(whole_layer, dynamic=True, fullgraph=True)
        self._timed = self.whole_step if compiled else self.step

    def rewind(self) -> None:
        self._seen = self._depth

    def __call__(self, tokens: Tokens) -> Logits:
        return self._run(self._timed, tokens)

    def _run(self, step: Callable[[Tensor, Tensor], Tensor], tokens: Tokens) -> Logits:
        ids_T = torch.from_numpy(tokens)
        places_T = torch.arange(self._seen, self._seen + len(tokens))
        with torch.no_grad(), threads(self._threads):
            logits_V = step(ids_T, places_T)
        self._seen += len(tokens)
        return logits_V.numpy()

    def whole_step(self, ids_T: Tensor, places_T: Tensor) -> Tensor:
        """Attends to every position of the buffers, behind a mask: one graph of a layer serves all layers and steps."""
        model = self.model
        turn_TD = (model.cos_CD[places_T], model.sin_CD[places_T])
        mask_TC = torch.arange(self.keys_LKCD.shape[2]) <= places_T[:, None]
        x_TM = model.token_embd(ids_T)
        for layer, keys_KCD, values_KCD in zip(model.blk, self.keys_LKCD, self.values_LKCD, strict=True):
            x_TM = self._layer(layer, x_TM, turn_TD, mask_TC, places_T, keys_KCD, values_KCD)
        return model.output(model.output_norm(x_TM[-1]))

    def step(self, ids_T: Tensor, places_T: Tensor) -> Tensor:
        """Attends to the positions that are filled."""
        end = self._seen + len(ids_T)

        def memory(layer: int, keys_KTD: Tensor, values_KTD: Tensor) -> tuple[Tensor, Tensor]:
            keys_KCD, values_KCD = self.keys_LKCD[layer], self.values_LKCD[layer]
            keys_KCD[:, self._seen : end] = keys_KTD
            values_KCD[:, self._seen : end] = values_KTD
            return keys_KCD[:, :end], values_KCD[:, :end]

        mask_TS = None if len(ids_T) == 1 else torch.arange(end) <= places_T[:, None]
        return self.model(ids_T, places_T, mask_TS, memory)


def whole_layer(
    layer: Layer, x_TM: Tensor, turn_TD: Turn, mask_TC: Tensor, places_T: Tensor, keys_KCD: Tensor, values_KCD: Tensor
) -> Tensor:
    """A layer that writes into its buffers where the tokens are and sees all of them."""

    def remember(keys_KTD: Tensor, values_KTD: Tensor) -> tuple[Tensor, Tensor]:
        keys_KCD.index_copy_(1, places_T, keys_KTD)
        values_KCD.index_copy_(1, places_T, values_KTD)
        return keys_KCD, values_KCD

    return layer(x_TM, turn_TD, mask_TC, remember)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for what is inside; torch's setting is afterwards as it was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Step(nn.Module):
    """One step whose memory is its input and its output."""

    def __init__(self, model: Llama) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_T: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Ids, then keys (K, P, D) and values of each layer -> logits (V,), then keys (K, S, D) and values."""
        new: list[Tensor] = []

        def memory(layer: int, keys_KTD: Tensor, values_KTD: Tensor) -> tuple[Tensor, Tensor]:
            keys_KSD = torch.cat([past[2 * layer], keys_KTD], dim=1)
            values_KSD = torch.cat([past[2 * layer + 1], values_KTD], dim=1)
            new.extend((keys_KSD, values_KSD))
            return keys_KSD, values_KSD

        tokens, before = ids_T.shape[0], past[0].shape[1]  # len() would fix the number of tokens in the graph
        places_T = torch.arange(tokens) + before
        mask_TS = torch.arange(before + tokens) <= places_T[:, None]
        return self.model(ids_T, places_T, mask_TS, memory), *new


def export(weights: Weights, where: Path, positions: int) -> None:
    """Write one step as an ONNX file: ids, keys_0, values_0, ... -> logits, new_keys_0, new_values_0, ..."""
    config = weights.config
    names = [f"{part}_{layer}" for layer in range(config.layers) for part in ("keys", "values")]
    past = [torch.zeros(config.kv_heads, 3, config.head_dim) for _ in names]
    any_number = torch.export.Dim.DYNAMIC
    torch.onnx.export(
        _Step(load(weights, positions)).eval(),
        (torch.zeros(2, dtype=torch.int64), *past),
        where,
        dynamo=True,
        opset_version=OPSET,
        input_names=["ids", *names],
        output_names=["logits", *(f"new_{name}" for name in names)],
        dynamic_shapes=({0: any_number}, tuple({1: any_number} for _ in names)),
        verbose=False,
    )
