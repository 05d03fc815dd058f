"""Attention: ``softmax(q k^T / sqrt(D)) v``, exactly as ``F.scaled_dot_product_attention`` defines it.

A contender's call takes ``q_BHTD, k_BGTD, v_BGTD`` and returns ``out_BHTD``; ``causal`` and the head counts are known
from the case when it is built. The track adds the backward pass where the case asks for it.

Letters: B batch, H query heads, G key/value heads (G divides H), T length, D head size.

Source: Vaswani et al. 2017, arXiv:1706.03762
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.track import Call, Device, Place, Track

DTYPE_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}

# A call over more tokens than this is a GPU's work: on CPU cores it lasts seconds, and its backward tens of them.
CPU_TOKENS = 4096


@dataclass(frozen=True)
class AttentionCase:
    """One self-attention: queries, keys and values have the same length."""

    batch: int = 1
    heads: int = 8
    kv_heads: int | None = None  # fewer than heads: grouped-query attention; None: as many as heads
    length: int = 1024
    head_dim: int = 64
    causal: bool = False
    dtype: str = "fp32"
    backward: bool = False  # time forward and backward together
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {self.dtype!r}: allowed are {', '.join(DTYPE_BYTES)}")
        if self.heads % self.groups:
            raise ValueError(f"{self.heads} heads cannot share {self.groups} KV heads: these must divide those")

    @property
    def groups(self) -> int:
        """Number of KV heads, G."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def grouped(self) -> bool:
        """Whether several query heads share a KV head."""
        return self.groups != self.heads

    @property
    def slug(self) -> str:
        parts = [f"b{self.batch}", f"h{self.heads}"]
        parts += [f"kv{self.groups}"] if self.grouped else []
        parts += [f"len{self.length}", f"d{self.head_dim}"]
        parts += ["causal"] if self.causal else []
        parts += [self.dtype, "fwdbwd" if self.backward else "fwd"]
        parts += [f"t{self.threads}"] if self.threads else []
        return "-".join(parts)

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        axes: dict[str, str | int | float | bool] = {
            "batch": self.batch,
            "heads": self.heads,
            "kv_heads": self.groups,
            "length": self.length,
            "head_dim": self.head_dim,
            "causal": self.causal,
            "dtype": self.dtype,
            "pass": "fwdbwd" if self.backward else "fwd",
        }
        return axes | {"threads": self.threads} if self.threads else axes

    def flops(self) -> float:
        """Multiply-adds of the unavoidable matrix products, two operations each.

        Forward: S = Q K^T and O = P V over the scores that exist (with a causal mask T(T+1)/2 of them). Backward:
        dV, dP, dQ and dK, four more, so three times the forward. A contender that recomputes S in the backward does
        more; that is its choice, not the question's. The softmax is not counted: it is O(1/D) of this.
        """
        scores = self.length * (self.length + 1) / 2 if self.causal else float(self.length) ** 2
        forward = 4.0 * self.batch * self.heads * scores * self.head_dim
        return 3 * forward if self.backward else forward

    def bytes_moved(self) -> float:
        """q, k, v read and out written once; with a backward also dout read and dq, dk, dv written."""
        row = self.batch * self.length * self.head_dim * DTYPE_BYTES[self.dtype]
        q_sized, kv_sized = row * self.heads, row * self.groups
        forward = 2 * q_sized + 2 * kv_sized
        return float(forward + 2 * q_sized + 2 * kv_sized if self.backward else forward)


def _test_cases() -> tuple[AttentionCase, ...]:
    """First twelve with gradients: two at each length, and any two of mask, grouping and dtype meet in all four ways.

    The full product is in tests/kernels/attention/test_matrix.py, since compilers take seconds for each case. The rest
    is for what the twelve leave out: the path without gradients, other dtypes, head sizes, groups and batches.
    """
    case = AttentionCase
    return (
        case(heads=4, kv_heads=1, length=1, dtype="fp32", backward=True),
        case(heads=2, length=1, dtype="bf16", causal=True, backward=True),
        case(heads=2, length=63, dtype="fp32", backward=True),
        case(heads=8, kv_heads=2, length=63, dtype="bf16", causal=True, backward=True),
        case(heads=2, length=100, dtype="bf16", backward=True),
        case(heads=4, kv_heads=1, length=100, dtype="fp32", causal=True, backward=True),
        case(heads=4, kv_heads=1, length=127, dtype="fp32", backward=True),
        case(heads=2, length=127, head_dim=128, dtype="bf16", causal=True, backward=True),
        case(heads=4, kv_heads=1, length=257, dtype="bf16", backward=True),
        case(heads=2, length=257, dtype="fp32", causal=True, backward=True),
        case(heads=2, length=1024, dtype="fp32", backward=True),
        case(heads=4, kv_heads=1, length=1024, dtype="bf16", causal=True, backward=True),
        case(heads=2, length=63, head_dim=32, dtype="fp64", backward=True),
        case(batch=2, heads=4, kv_heads=1, length=100, dtype="fp64", causal=True, backward=True),
        case(heads=4, kv_heads=2, length=257, dtype="bf16", causal=True, backward=True),
        case(heads=2, length=1, dtype="fp32"),
        case(batch=2, heads=2, length=63, head_dim=32, dtype="fp32", causal=True),
        case(heads=4, kv_heads=2, length=127, dtype="fp32"),
        case(heads=2, length=127, dtype="fp16", causal=True),
        case(heads=4, kv_heads=1, length=257, dtype="bf16"),
        case(heads=2, length=257, dtype="fp16"),
        case(heads=2, length=1024, dtype="fp32"),
        case(heads=4, kv_heads=1, length=1024, dtype="bf16", causal=True),
    )


def _cpu_cases() -> tuple[AttentionCase, ...]:
    """By importance: a run with little time takes the first ones."""
    case = AttentionCase
    return (
        case(dtype="fp32"),
        case(dtype="bf16", causal=True),
        case(dtype="bf16", causal=True, backward=True),
        # Four heads, so that the longest takes seconds, not minutes, on two cores.
        *(case(heads=4, length=length, dtype="fp32") for length in (128, 512, 1024, 2048, 4096)),
        case(kv_heads=2, head_dim=128, dtype="bf16", causal=True),
        case(dtype="fp32", threads=1),
        case(dtype="fp32", backward=True),
    )


def _gpu_cases() -> tuple[AttentionCase, ...]:
    """16k tokens a call however long the sequence, as the FlashAttention papers measure; one sequence of 32k alone."""

    def case(
        length: int,
        heads: int = 16,
        kv_heads: int | None = None,
        head_dim: int = 64,
        causal: bool = False,
        dtype: str = "bf16",
        backward: bool = False,
    ) -> AttentionCase:
        batch = max(1, 16384 // length)
        return AttentionCase(batch, heads, kv_heads, length, head_dim, causal, dtype, backward)

    lengths = (512, 1024, 2048, 4096, 8192, 16384)
    return (
        *(case(length, causal=True) for length in (*lengths, 32768)),
        *(case(length, causal=True, backward=True) for length in lengths),
        *(case(length) for length in (1024, 4096, 16384)),
        case(4096, backward=True),
        *(case(length, head_dim=128, causal=True) for length in (2048, 8192)),
        case(8192, head_dim=128, causal=True, backward=True),
        *(case(4096, heads=32, kv_heads=8, head_dim=128, causal=True, backward=back) for back in (False, True)),
        case(8192, head_dim=128, dtype="fp16"),
        case(4096, dtype="fp32", causal=True),
    )


def _make_inputs(case: AttentionCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.kernels.attention import _workload

    return _workload.make_inputs(case, seed, device)


def _add_backward(case: AttentionCase, call: Call) -> Call:
    from archbench.kernels.attention import _workload

    return _workload.workload(case, call)


def _check(case: AttentionCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.kernels.attention import _workload

    return _workload.gate(case, inputs, outputs)


def _skip(case: AttentionCase, place: Place) -> str | None:
    tokens = case.batch * case.length
    if place.device == "cpu" and tokens > CPU_TOKENS:
        return f"{tokens} tokens a call are a GPU's work; CPU cases have at most {CPU_TOKENS}"
    if place.device == "cuda" and case.threads:
        return "a thread count means nothing on a GPU"
    # Inputs and outputs, their float64 copies in the gate, and one chunk of the reference's scores.
    needed = case.bytes_moved() * (2 + 3 * 8 / DTYPE_BYTES[case.dtype]) + 4 * 2**30 * (place.device == "cuda")
    if needed > place.memory_bytes:
        return f"needs {needed / 2**30:.1f} GiB for inputs and the check; there are {place.memory_bytes / 2**30:.1f}"
    return None


NOTES = """\
Every contender answers the same question as torch.nn.functional.scaled_dot_product_attention: scale
1/sqrt(head size), optional causal mask, no dropout. With fewer KV heads than heads (grouped-query attention), KV
head g serves the heads/kv_heads consecutive query heads that start at g * heads/kv_heads.

"fwd" is the forward pass under torch.no_grad. "fwdbwd" is one forward and one backward through torch.autograd.grad
for a given gradient of the output: out, dq, dk and dv are all checked. What a contender saves between the passes is
its choice.

Operations are those of the unavoidable matrix products: two in the forward (scores, output), four in the backward
(dv, dp, dq, dk), over the scores a causal mask leaves. Recomputing the scores in the backward is not credited:
papers that count 2.5 forwards for the backward count it, so their rates read higher than ours by 3.5/3.

Answers are compared element by element with a float64 computation on the same inputs. The bound shrinks with the
square root of the row's length, as the outputs do: a fixed bound would let whole late rows of a causal case go
unchecked. TF32 fails the fp32 bound and is not switched on.

"fourier" and "transformers_fnet" compute another function (FNet's mixing), are checked against its float64 transform,
and are shown beside the ranking, not in it: they say what the place of attention costs when a fixed transform takes
it."""

TRACK: Track[AttentionCase] = Track(
    name="attention",
    question="Which attention implementation is fastest at equal answers?",
    version="1",
    baseline="torch_sdpa",
    test_cases=_test_cases(),
    bench_cases=_cpu_cases() + _gpu_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_add_backward,
    skip=_skip,
    preload=("torch", "torch._dynamo", "torch._inductor.compile_fx", "torch.nn.attention.flex_attention", "triton"),
    notes=NOTES,
)
