"""Where the weights of each model come from.

A source knows the shapes of its tensors and gives them one at a time as float32, so that a model of a thousand million
weights never lies in memory as a whole. Random weights are drawn tensor by tensor, each from its own seed, with the
spread that keeps activations of size one through any number of layers: 1 / sqrt(inputs), and for the two matrices of a
layer that add to the residual stream another 1 / sqrt(2 x layers).

Source: Radford et al. 2019, Language Models are Unsupervised Multitask Learners (residual projections)
"""

from __future__ import annotations

import importlib.util
import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from archbench.models.edge_llm._config import MODELS, LlamaConfig
from archbench.models.edge_llm._weights_blocks import BLOCK, KINDS, Floats

MIXED = "q4_k_m"
USUAL = {"tiny_random": ("q4_0",), "stories260k": ("f32", "q8_0"), "tinyllama_1b1_random": ("q4_0", MIXED)}
OTHERS = ("q4_0", "q8_0", "f16", MIXED)  # of any other model: what its cases need
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
EMBEDDED = 0.02  # of a random embedding: so small that the epsilon of the first norm is seen in the answer
NORMS = (0.5, 1.5)  # between which the weights of random norms lie: one that is left out is seen
RESIDUAL = ("attn_output.weight", "ffn_down.weight")


def usual(model: str) -> tuple[str, ...]:
    """The kinds of weights that are made when none is named; llama.cpp's mix where its quantiser is installed."""
    kinds = USUAL.get(model, OTHERS)
    return kinds if importlib.util.find_spec("llama_cpp") else tuple(kind for kind in kinds if kind != MIXED)


def never(model: str, weights: str) -> str | None:
    """Why a model cannot have weights of a kind; None: it can."""
    columns = {shape[-1] for shape in shapes(MODELS[model].config).values() if len(shape) == 2}
    block = KINDS[weights].block if weights in KINDS else BLOCK  # llama.cpp's mixes fall back to blocks of 32
    odd = sorted(count for count in columns if count % block)
    if odd and (weights != "q8_0" or len(odd) == len(columns)):
        return f"{model} has matrices of {odd[0]} columns, no multiple of the {block} weights of a block of {weights}"
    return None


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model by name, in the order of the file: (outputs, inputs) or (columns,)."""
    dim, hidden, keys = config.dim, config.hidden, config.kv_heads * config.head_dim
    queries = config.heads * config.head_dim
    found: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocabulary, dim)}
    layer = {
        "attn_norm": (dim,),
        "attn_q": (queries, dim),
        "attn_k": (keys, dim),
        "attn_v": (keys, dim),
        "attn_output": (dim, queries),
        "ffn_norm": (dim,),
        "ffn_gate": (hidden, dim),
        "ffn_up": (hidden, dim),
        "ffn_down": (dim, hidden),
    }
    for number in range(config.layers):
        found |= {f"blk.{number}.{part}.weight": shape for part, shape in layer.items()}
    found["output_norm.weight"] = (dim,)
    return found if config.tied else found | {OUTPUT: (config.vocabulary, dim)}


class Source(ABC):
    """One model's weights, tensor by tensor."""

    def __init__(self, model: str) -> None:
        self.model, self.origin, self.random = model, MODELS[model].origin, MODELS[model].random
        self.config = MODELS[model].config
        self.shapes = shapes(self.config)

    @abstractmethod
    def tensor(self, name: str) -> Floats:
        """float32, of the shape in ``shapes``."""

    def add_tokenizer(self, writer: Any) -> None:
        """None: tokens are numbers."""
        writer.add_tokenizer_model("none")


class Random(Source):
    """Weights nobody trained."""

    def tensor(self, name: str) -> Floats:
        shape = self.shapes[name]
        draw = np.random.default_rng([zlib.crc32(name.encode()), shape[0]])
        if len(shape) == 1:
            return draw.uniform(*NORMS, shape).astype(np.float32)
        deviation = EMBEDDED if name == EMBEDDING else shape[1] ** -0.5
        if name.endswith(RESIDUAL):
            deviation *= (2 * self.config.layers) ** -0.5
        drawn = draw.standard_normal(shape, np.float32)
        drawn *= np.float32(deviation)
        return drawn


def source(model: str) -> Source:
    """Raises BadArtefact where the weights cannot be found, with what to do."""
    if MODELS[model].random:
        return Random(model)
    from archbench.models.edge_llm import _artefacts_trained as trained

    return trained.source(model)
