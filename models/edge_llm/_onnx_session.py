"""Runs the graphs of ``_onnx_graph.py`` and ``_onnx_plain.py``: sessions, and decoders that differ in their cache.

``SharedCache`` binds the same memory as cache in and cache out; the attention operator sees that, and writes the new
keys and values behind the old ones. Everything a step needs is bound once; then only a token id and two lengths change,
in place. ``GrowingCache`` gives every step a cache of its own, as a graph whose caches are ordinary inputs and outputs
makes it: what is there already is copied. ``NoCache`` reads the whole text for every token.

A session's threads spin while a step runs and stop with it: contender and baseline take turns on the same cores.

Source: https://onnxruntime.ai/docs/performance/tune-performance/iobinding.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from archbench.hardware.cpu import usable_cores
from archbench.models.edge_llm import EdgeCase, Logits, Tokens, prefix
from archbench.models.edge_llm._onnx_data import Piece, data_file, layout
from archbench.models.edge_llm._onnx_graph import INT8, Cache, Scales, fused
from archbench.models.edge_llm._weights import Weights, open_weights
from archbench.track import Unavailable

Graph = Callable[[Weights, dict[str, Piece], str, int], onnx.ModelProto]
Session: TypeAlias = onnxruntime.InferenceSession

CHUNK = 512  # tokens of the prefix that are evaluated together
ROTATED = 16  # values of a head that the fused operator turns at a time
SAMPLE = 256  # tokens the scales of an int8 cache are taken from
HEADROOM = 1.25  # of them
ERRORS_ONLY = 3  # of the library's log


def fused_for(case: EdgeCase, accuracy: int = INT8) -> Session:
    """A session of the fused graph, whose cache is of the case's kind. Raises Unavailable."""
    size = case.config.head_dim
    if size % ROTATED:
        raise Unavailable(f"the fused operator turns heads of a multiple of {ROTATED} values, not of {size}")
    scales = None if case.kv == "f16" else cache_scales(case, accuracy)
    return opened(case, partial(fused, accuracy=accuracy, scales=scales))


def cache_scales(case: EdgeCase, accuracy: int) -> Scales:
    """For each layer the scales (1, K, 1, E) of keys and of values in int8.

    The operator wants them beforehand, for each channel: they are those of a text of random tokens, with room for
    larger values than it had.
    """
    sample = replace(case, phase="pp", depth=0, tokens=min(SAMPLE, case.config.context), kv="f16")
    reader = SharedCache(fused_for(sample, accuracy), sample)
    reader(np.random.default_rng(0).integers(0, case.config.vocabulary, sample.tokens, dtype=np.int32))
    largest = ([np.abs(each).max(axis=2, keepdims=True) for each in reader.cache(n)] for n in range(case.config.layers))
    return [(HEADROOM / 127 * keys, HEADROOM / 127 * values) for keys, values in largest]


def only_float(case: EdgeCase) -> None:
    """Raises Unavailable where a case wants another cache than one of the activations' type."""
    if case.kv != "f16":
        raise Unavailable(f"an ablation of ort_fused with the cache in fp32: no {case.kv}")


def opened(case: EdgeCase, graph: Graph, *, fusion: bool = True) -> Session:
    """A session for a case. Raises Unavailable where weights are of a kind the library has no operator for."""
    weights = open_weights(case)
    pieces, end = layout(weights)
    data = data_file(weights, pieces, end)
    model = graph(weights, pieces, data.name, case.depth + case.tokens)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads or usable_cores()
    options.log_severity_level = ERRORS_ONLY
    if not fusion:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data.parent))
    return Session(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def on_cpu(values: npt.NDArray[Any]) -> Any:
    """An OrtValue in the memory of an array. It keeps the array; a binding of it does not."""
    return onnxruntime.OrtValue.ortvalue_from_numpy(values)


class SharedCache:
    """A decoder whose cache stays in one place."""

    def __init__(self, session: Session, case: EdgeCase) -> None:
        config, room = case.config, case.depth + case.tokens
        self._session, self._depth, self._seen = session, case.depth, 0
        self._ids, self._last, self._total = np.zeros((1, 1), np.int32), np.zeros(1, np.int32), np.zeros((), np.int32)
        self._logits = np.zeros((1, 1, config.vocabulary), np.float32)
        self._binding, self._bound = session.io_binding(), {}
        kind = np.float32 if case.kv == "f16" else np.int8
        for name, array in (("ids", self._ids), ("last", self._last), ("total", self._total)):
            self._bound[name] = on_cpu(array)
            self._binding.bind_ortvalue_input(name, self._bound[name])
        self._bound["logits"] = on_cpu(self._logits)
        self._binding.bind_ortvalue_output("logits", self._bound["logits"])
        for layer in range(config.layers):
            for past, present in zip(Cache(layer).past, Cache(layer).present, strict=True):
                self._bound[past] = on_cpu(np.zeros((1, config.kv_heads, room, config.head_dim), kind))
                self._binding.bind_ortvalue_input(past, self._bound[past])
                self._binding.bind_ortvalue_output(present, self._bound[past])
        evaluate_prefix(self, case)

    def cache(self, layer: int) -> list[npt.NDArray[Any]]:
        """Keys and values (1, K, S, E) of the tokens seen so far."""
        return [self._bound[name].numpy()[:, :, : self._seen] for name in Cache(layer).past]

    def rewind(self) -> None:
        self._seen = self._depth

    def __call__(self, tokens: Tokens) -> Logits:
        self._seen += len(tokens)
        self._last[0], self._total[()] = self._seen - 1, self._seen
        if len(tokens) == 1:
            self._ids[0, 0] = tokens[0]
            self._session.run_with_iobinding(self._binding)
        else:
            ids = on_cpu(np.array(tokens[None], np.int32))
            self._binding.bind_ortvalue_input("ids", ids)
            self._session.run_with_iobinding(self._binding)
            self._binding.bind_ortvalue_input("ids", self._bound["ids"])
        return self._logits[0, 0]


class NoCache(SharedCache):
    """A decoder that evaluates all tokens for each new one. Its cache is written and never read."""

    def __init__(self, session: Session, case: EdgeCase) -> None:
        self._text = np.zeros(case.depth + case.tokens, np.int32)
        self._known = 0
        super().__init__(session, case)

    def rewind(self) -> None:
        self._known = self._depth

    def __call__(self, tokens: Tokens) -> Logits:
        start, self._known = self._known, self._known + len(tokens)
        self._text[start : self._known] = tokens
        self._seen = 0
        return super().__call__(self._text[: self._known])


class GrowingCache:
    """A decoder whose every step makes a new cache of the old one and the new tokens."""

    def __init__(self, session: Session, case: EdgeCase) -> None:
        config = case.config
        self._session, self._depth, self._seen = session, case.depth, 0
        self._past = [name for layer in range(config.layers) for name in Cache(layer).past]
        self._present = [name for layer in range(config.layers) for name in Cache(layer).present]
        self._cache = [on_cpu(np.zeros((1, config.kv_heads, 0, config.head_dim), np.float32)) for _ in self._past]
        evaluate_prefix(self, case)
        self._before = self._cache

    def rewind(self) -> None:
        self._seen, self._cache = self._depth, self._before

    def __call__(self, tokens: Tokens) -> Logits:
        self._seen += len(tokens)
        given = {"ids": tokens[None], "last": np.array([self._seen - 1]), "total": np.array(self._seen)}
        values = {name: on_cpu(array.astype(np.int32)) for name, array in given.items()}
        values |= zip(self._past, self._cache, strict=True)
        binding = self._session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in ("logits", *self._present):
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        logits, *self._cache = binding.get_outputs()
        return logits.numpy()[0, 0]


def evaluate_prefix(decoder: SharedCache | GrowingCache, case: EdgeCase) -> None:
    tokens = prefix(case)
    for start in range(0, case.depth, CHUNK):
        decoder(tokens[start : start + CHUNK])
