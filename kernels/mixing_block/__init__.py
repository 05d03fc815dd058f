"""Mixing block: one pre-norm encoder block, with attention or something cheaper mixing the tokens.

``y = x + mixing(norm(x)); out = y + down(gelu(up(norm(y))))``. A contender is a mixing; norms, feed-forward layer and
residuals are the same code and the same weights for all. Its call is a module that maps ``x_BTD`` to ``out_BTD``; the
track adds the backward pass where the case asks for it.

Letters: B batch, T length, D width (hidden size), H heads, F width of the feed-forward layer.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824; Xiong et al. 2020, arXiv:2002.04745 (pre-norm)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.track import Call, Device, Place, Track

DTYPE_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2}

# A call over more tokens than this is a GPU's work.
CPU_TOKENS = 16384


@dataclass(frozen=True)
class MixingBlockCase:
    """One block at one shape; the feed-forward layer is four times as wide as the block."""

    batch: int = 8
    length: int = 512
    width: int = 512
    heads: int = 8
    dtype: str = "fp32"
    backward: bool = False  # time forward and backward together
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {self.dtype!r}: allowed are {', '.join(DTYPE_BYTES)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layer, F."""
        return 4 * self.width

    @property
    def slug(self) -> str:
        parts = [f"b{self.batch}", f"len{self.length}", f"d{self.width}", f"h{self.heads}"]
        parts += [self.dtype, "fwdbwd" if self.backward else "fwd"]
        parts += [f"t{self.threads}"] if self.threads else []
        return "-".join(parts)

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        axes: dict[str, str | int | float | bool] = {
            "batch": self.batch,
            "length": self.length,
            "width": self.width,
            "heads": self.heads,
            "dtype": self.dtype,
            "pass": "fwdbwd" if self.backward else "fwd",
        }
        return axes | {"threads": self.threads} if self.threads else axes

    def flops(self) -> float:
        """Matrix products of the block with attention, a multiply-add as two; the backward is twice the forward."""
        tokens = float(self.batch * self.length)
        projections = 8 * self.width**2
        scores = 4 * self.length * self.width
        feed_forward = 4 * self.width * self.hidden
        forward = tokens * (projections + scores + feed_forward)
        return 3 * forward if self.backward else forward

    def bytes_moved(self) -> float:
        """x read, out written, weights read once; with a backward dout read, dx and the weights' gradients written."""
        tokens = 2 * self.batch * self.length * self.width
        weights = 4 * self.width**2 + 2 * self.width * self.hidden
        once = float((tokens + weights) * DTYPE_BYTES[self.dtype])
        return 2 * once if self.backward else once


def _test_cases() -> tuple[MixingBlockCase, ...]:
    case = MixingBlockCase
    return (
        case(batch=1, length=1, width=8, heads=2),
        case(batch=2, length=63, width=24, heads=3, backward=True),
        case(batch=3, length=101, width=35, heads=5),
        case(batch=2, length=100, width=32, heads=2, dtype="fp64", backward=True),
        case(batch=2, length=64, width=32, heads=2, dtype="bf16"),
        case(batch=1, length=1031, width=16, heads=2),
    )


def _bench_cases() -> tuple[MixingBlockCase, ...]:
    case = MixingBlockCase
    return (
        case(length=512),
        case(length=1024),
        case(length=512, backward=True),
        case(length=512, width=256),
        case(length=1024, width=256),
        case(batch=2, length=4096, width=256),
        *(case(batch=32, length=length, width=768, heads=12, backward=True) for length in (512, 1024, 2048)),
    )


def _make_inputs(case: MixingBlockCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.kernels.mixing_block import _workload

    return _workload.make_inputs(case, seed, device)


def _add_backward(case: MixingBlockCase, call: Call) -> Call:
    from archbench.kernels.mixing_block import _workload

    return _workload.workload(case, call)


def _check(case: MixingBlockCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.kernels.mixing_block import _reference

    return _reference.ATTENTION(case, inputs, outputs)


def _skip(case: MixingBlockCase, place: Place) -> str | None:
    tokens = case.batch * case.length
    if place.device == "cpu" and tokens > CPU_TOKENS:
        return f"{tokens} tokens a call are a GPU's work; CPU cases have at most {CPU_TOKENS}"
    if place.device == "cuda" and case.threads:
        return "a thread count means nothing on a GPU"
    return None


NOTES = """\
One pre-norm encoder block, forward, or forward and backward with the gradients of the input and of every weight. Norms,
exact GELU, feed-forward layer (four times the width) and residuals are one implementation for all; only the mixing of
tokens is exchanged. Weights are the same for all contenders and made before the clock starts.

"attention" is the baseline: one product for q, k and v, `scaled_dot_product_attention` with the backend torch picks,
one product for the output. Everything else computes another function on purpose, is checked against a float64
reference of its own, and stands beside the ranking. "none" mixes nothing: no mixing can be faster, so its ratio is what
exchanging attention can buy at most. FNet's mixing comes twice: "fourier_fft2" is the published one line, "fourier"
uses that the input is real and that of the output only the real part is wanted.

Without gradients every block, attention's too, takes some samples at a time and its feed-forward layer 256 tokens of
them, so that what lies between two operations stays in cache. The shared part is then as short as it can be, which
leaves more of the ratio to the mixing.

Operations and bytes are those of the block with attention."""

TRACK: Track[MixingBlockCase] = Track(
    name="mixing_block",
    question="How much faster is a transformer block when something cheaper takes attention's place?",
    version="1",
    baseline="attention",
    test_cases=_test_cases(),
    bench_cases=_bench_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_add_backward,
    skip=_skip,
    on_request="10 minutes",  # the float64 check of a block takes longer than its measurement
    preload=("torch",),
    notes=NOTES,
)
