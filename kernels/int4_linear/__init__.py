"""Linear layers with 4-bit weights: y = x W^T, where a group of weights of a row shares a scale.

A weight is ``scale * (code - 8)`` with a code of 4 bits, so all contenders hold the same numbers, packed as each likes
before the clock starts. A call applies ``layers`` such matrices to one x and returns y of all: a network reads each of
its matrices once a token, so a matrix has left the cache when it is needed again, and a case says with its layers
whether it is such a one. x (M, K), y (layers, M, N), both float32; bfloat16 in kind ``w4a16``.

The kind says what may become of activations: ``w4a32`` and ``w4a16`` keep them, ``w4a8`` allows rounding them to 8 bits
with a scale for each row or for a part of it. The gate's bounds follow from that alone.

Letters: M tokens, K inputs, N outputs, G weights of a group.

Source: Dettmers & Zettlemoyer 2022, arXiv:2212.09720; Frantar et al. 2022, arXiv:2210.17323
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.track import Device, Place, Track

KINDS = {"w4a32": "fp32", "w4a16": "bf16", "w4a8": "int8"}  # what activations may be, and the rate that limits products
SCALE_BYTES = 2  # of a group: scales are exact in bfloat16 and in half precision


@dataclass(frozen=True)
class Int4Case:
    """Matrices of one shape, and how many tokens meet them at once."""

    tokens: int
    inputs: int
    outputs: int
    kind: str = "w4a8"
    group: int = 32
    layers: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: allowed are {', '.join(KINDS)}")
        if self.group < 2 or self.group % 2 or self.inputs % self.group:
            raise ValueError(f"groups of {self.group}: must be even and divide the {self.inputs} inputs")
        if min(self.tokens, self.inputs, self.outputs, self.layers) < 1:
            raise ValueError("tokens, inputs, outputs and layers: at least one of each")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads}: at least 1, or None for every core")

    @property
    def slug(self) -> str:
        parts = [f"m{self.tokens}", f"k{self.inputs}", f"n{self.outputs}", f"g{self.group}"]
        parts += [f"l{self.layers}"] if self.layers > 1 else []
        parts += [self.kind]
        return "-".join([*parts, *([f"t{self.threads}"] if self.threads else [])])

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        axes: dict[str, str | int | float | bool] = {
            "tokens": self.tokens,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "group": self.group,
            "layers": self.layers,
            "kind": self.kind,
        }
        return axes | ({"threads": self.threads} if self.threads else {})

    @property
    def dtype(self) -> str:
        return KINDS[self.kind]

    @property
    def float_bytes(self) -> int:
        """Of an element of x and y."""
        return 2 if self.kind == "w4a16" else 4

    @property
    def weight_bytes(self) -> float:
        """Of all matrices packed: half a byte a weight, a scale a group."""
        return self.layers * self.outputs * self.inputs * (0.5 + SCALE_BYTES / self.group)

    def flops(self) -> float:
        return 2.0 * self.layers * self.tokens * self.inputs * self.outputs

    def bytes_moved(self) -> float:
        """Each packed matrix and x read once, each y written once."""
        return self.weight_bytes + self.float_bytes * self.tokens * (self.inputs + self.layers * self.outputs)


def _make_inputs(case: Int4Case, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.kernels.int4_linear import _gate

    return _gate.make_inputs(case, seed, device)


def _check(case: Int4Case, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.kernels.int4_linear import _gate

    return _gate.gate(case, inputs, outputs)


def _skip(case: Int4Case, place: Place) -> str | None:
    if place.device == "cuda" and case.threads:
        return "a thread count means nothing on a GPU"
    # The matrices in float32 for the dense baseline, packed for the contender, in float64 row by row for the check.
    needed = 4.0 * case.layers * case.outputs * case.inputs + 3 * case.weight_bytes
    if needed > 0.7 * place.memory_bytes:
        return f"needs {needed / 2**30:.1f} GiB for the matrices; there are {place.memory_bytes / 2**30:.1f}"
    return None


def _test_cases() -> tuple[Int4Case, ...]:
    case = Int4Case
    return (
        case(1, 32, 16),
        case(3, 96, 33),
        case(1, 256, 192, layers=3),
        case(13, 160, 40, kind="w4a32"),
        case(1, 512, 64, kind="w4a32", group=128, layers=2),
        case(5, 256, 48, group=64),
        case(7, 128, 80, kind="w4a16"),
        case(1, 384, 32, kind="w4a16", group=128),
    )


def _bench_cases() -> tuple[Int4Case, ...]:
    """A vision transformer's layers (ViT-S: 384 wide), and a language model's at one token and many."""
    case = Int4Case
    return (
        case(1, 4096, 11008, layers=6),  # 270 M weights, 152 MB: out of any cache here
        case(1, 4096, 4096, layers=16),
        case(1, 4096, 11008, kind="w4a32", layers=6),
        case(1, 4096, 4096, kind="w4a32", group=128, layers=16),
        case(197, 384, 1536),
        case(197, 1536, 384),
        case(197, 384, 1536, kind="w4a32"),
        case(4096, 384, 1536),
        case(1, 4096, 4096, kind="w4a16", layers=16),
        case(197, 384, 1536, kind="w4a16"),
        case(512, 4096, 4096),
        case(1, 4096, 4096, layers=16, threads=1),
    )


NOTES = """\
One call applies all matrices of the case to one input. Times are per matrix. Matrices are packed before the clock
starts, and each contender packs them its own way; the limit counts half a byte for a weight and two for the scale of
a group.

Weights are 4-bit codes times a scale that bfloat16 and half precision both hold exactly, so nobody has other weights.
In w4a8 a contender may round activations to 8 bits; one that does not may take part as well. The bound of an output
follows from the rounding that is allowed: half a step for each activation, independent errors, six deviations wide."""

TRACK: Track[Int4Case] = Track(
    name="int4_linear",
    question="Which implementation of a linear layer with 4-bit weights is fastest?",
    version="1",
    baseline="dense",
    test_cases=_test_cases(),
    bench_cases=_bench_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    skip=_skip,
    item="matrix",
    items=lambda case: case.layers,
    preload=("torch",),
    derivation="quantization",
    notes=NOTES,
)
