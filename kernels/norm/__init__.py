"""Normalization layers: batch, layer, instance, group and root-mean-square, one formula over different index sets.

Each of them splits the tensor into sets of elements, and gives a set its mean and variance:
``y = (x - mean) / sqrt(variance + EPS) * weight + bias`` (rms: ``y = x / sqrt(mean(x^2) + EPS) * weight``). They
differ in the sets alone: a channel of all images (batch), a token (layer, rms), a channel of one image (instance), a
group of channels of one image (group). ``batch_eval`` takes the statistics it is given.

A contender's call takes, by the kind of the case,

- ``batch_train``: ``x, weight, bias, running_mean, running_var`` and returns ``y, running_mean, running_var``: the last
  two are the new ones, as ``nn.BatchNorm2d`` writes them into its buffers (momentum 0.1, the variance unbiased). They
  are results here because inputs must stay as they are; no gradient passes through them.
- ``batch_eval``: the same five, and returns ``y``.
- ``layer``, ``instance``, ``group``: ``x, weight, bias``, and returns ``y``.
- ``rms``: ``x, weight``, and returns ``y``.

x, y and their gradients are of the case's dtype. Weights, bias, statistics and their gradients are float32 beside bf16,
as mixed-precision training keeps them, else of the case's dtype, too. The track adds the backward pass where the case
asks for it: gradients of x, weight and bias.

Letters: N images, C channels, H height, W width; B sequences, T tokens, D features.

Source: Ioffe & Szegedy 2015, arXiv:1502.03167; Ba et al. 2016, arXiv:1607.06450; Ulyanov et al. 2016, arXiv:1607.08022;
Wu & He 2018, arXiv:1803.08494; Zhang & Sennrich 2019, arXiv:1910.07467
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from archbench.track import Call, Device, Place, Track

DTYPE_BYTES = {"fp64": 8, "fp32": 4, "bf16": 2}
KINDS = {"batch_train": "nchw", "batch_eval": "nchw", "layer": "btd", "instance": "nchw", "group": "nchw", "rms": "btd"}
EPS = 1e-5  # added to every variance
MOMENTUM = 0.1  # weight of the new statistics in the running ones

# A call over more elements than this is a GPU's work: its inputs, outputs and check would take a CPU a minute a cell.
CPU_ELEMENTS = 1 << 23


@dataclass(frozen=True)
class NormCase:
    """One normalization layer applied to one tensor."""

    kind: str  # of KINDS
    shape: tuple[int, ...]  # (n, c, h, w) or (b, t, d), as the kind wants it
    groups: int | None = None  # of kind group: how many share the channels
    dtype: str = "fp32"
    backward: bool = False  # time forward and backward together
    channels_last: bool = False  # x, and dy with it, have their channels innermost in memory
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: allowed are {', '.join(KINDS)}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"dtype {self.dtype!r}: allowed are {', '.join(DTYPE_BYTES)}")
        if len(self.shape) != len(KINDS[self.kind]):
            raise ValueError(f"{self.kind} takes a shape ({', '.join(KINDS[self.kind])}), not {self.shape}")
        if (self.groups is not None) != (self.kind == "group"):
            raise ValueError(f"groups={self.groups} with kind {self.kind}: kind group, and no other, needs a number")
        if self.groups and self.shape[1] % self.groups:
            raise ValueError(f"{self.shape[1]} channels cannot be split into {self.groups} groups")
        if self.channels_last and len(self.shape) != 4:
            raise ValueError("channels_last is a layout of images; tokens have theirs innermost anyway")

    @property
    def channels(self) -> int:
        """Length of weight and bias."""
        return self.shape[1] if len(self.shape) == 4 else self.shape[2]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def running(self) -> bool:
        """Whether the call gets running statistics."""
        return self.kind in ("batch_train", "batch_eval")

    @property
    def bias(self) -> bool:
        """Whether the call gets a bias."""
        return self.kind != "rms"

    @property
    def slug(self) -> str:
        parts = [self.kind] + ([f"g{self.groups}"] if self.groups else [])
        parts += [f"{letter}{size}" for letter, size in zip(KINDS[self.kind], self.shape, strict=True)]
        parts += ["nhwc"] if self.channels_last else []
        parts += [self.dtype, "fwdbwd" if self.backward else "fwd"]
        parts += [f"t{self.threads}"] if self.threads else []
        return "-".join(parts)

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        names = ("batch", "channels", "height", "width") if len(self.shape) == 4 else ("batch", "tokens", "features")
        axes: dict[str, str | int | float | bool] = {"kind": self.kind}
        axes |= dict(zip(names, self.shape, strict=True))
        axes |= {"groups": self.groups} if self.groups else {}
        axes |= {"layout": "channels_last" if self.channels_last else "contiguous"} if len(self.shape) == 4 else {}
        axes |= {"dtype": self.dtype, "pass": "fwdbwd" if self.backward else "fwd"}
        return axes | {"threads": self.threads} if self.threads else axes

    def flops(self) -> None:
        """Not defined: some ten operations an element, and how many depends on how the variance is formed.

        No processor is limited by them: all are within a factor of two of a copy once the bytes are.
        """
        return None

    def bytes_moved(self) -> float:
        """x read and y written once; with a backward also x and dy read and dx written.

        The backward needs x (or y, which is as large) again: between the passes nothing but memory holds it. Weights
        and statistics are C numbers and are not counted. ``batch_train`` cannot normalise before it has seen all of
        a channel; who keeps the channel in a cache meanwhile reads it once.
        """
        tensors = 5 if self.backward else 2
        return float(tensors * self.elements * DTYPE_BYTES[self.dtype])


def _test_cases() -> tuple[NormCase, ...]:
    case = NormCase
    return (
        case("batch_train", (2, 1, 1, 1), backward=True),
        case("batch_train", (4, 5, 7, 9)),
        case("batch_train", (3, 17, 5, 13), backward=True),
        case("batch_train", (5, 7, 6, 4), dtype="fp64", backward=True),
        case("batch_train", (3, 19, 8, 8), dtype="bf16", backward=True),
        case("batch_train", (3, 21, 7, 5), channels_last=True, backward=True),
        case("batch_train", (2, 64, 9, 9), dtype="bf16", channels_last=True),
        case("batch_train", (2, 3, 67, 71)),
        case("batch_eval", (2, 11, 5, 7)),
        case("batch_eval", (2, 11, 5, 7), channels_last=True),
        case("batch_eval", (3, 6, 5, 5), dtype="fp64", backward=True),
        case("batch_eval", (3, 6, 9, 5), dtype="bf16", backward=True),
        case("layer", (1, 1, 1), backward=True),
        case("layer", (2, 63, 100), backward=True),
        case("layer", (2, 5, 1031)),
        case("layer", (3, 9, 24), dtype="fp64", backward=True),
        case("layer", (3, 131, 256), dtype="bf16"),
        case("instance", (3, 5, 7, 9), backward=True),
        case("instance", (2, 5, 4, 5), dtype="fp64", backward=True),
        case("instance", (2, 6, 16, 16), dtype="bf16", backward=True),
        case("group", (3, 12, 7, 5), groups=4, backward=True),
        case("group", (2, 6, 31, 33), groups=1),
        case("group", (2, 8, 3, 5), groups=2, dtype="fp64", backward=True),
        case("group", (2, 64, 6, 6), groups=32, dtype="bf16", backward=True),
        case("rms", (1, 1, 1), backward=True),
        case("rms", (2, 63, 100), backward=True),
        case("rms", (3, 9, 24), dtype="fp64", backward=True),
        case("rms", (3, 131, 256), dtype="bf16", backward=True),
    )


def _cpu_cases() -> tuple[NormCase, ...]:
    """ResNet-50's stages at a batch of 32, and transformers' rows: a few million elements each."""
    case = NormCase
    stage = (32, 64, 56, 56)
    return (
        case("batch_train", stage),
        case("batch_train", stage, backward=True),
        case("layer", (8, 512, 768)),
        case("layer", (8, 512, 768), backward=True),
        case("group", (32, 256, 28, 28), groups=32, backward=True),
        case("rms", (1, 2048, 4096), dtype="bf16"),
        case("rms", (8, 512, 768), backward=True),
        case("instance", (8, 64, 112, 112)),
        case("batch_train", (32, 512, 14, 14), dtype="bf16", backward=True),
    )


def _gpu_cases() -> tuple[NormCase, ...]:
    """Tensors of 50 to 70 million elements: twice any card's cache in half precision."""
    case = NormCase
    stages = ((64, 256, 56, 56), (256, 1024, 14, 14))
    rows = ((64, 1024, 1024), (8, 2048, 4096))
    both = (False, True)
    return (
        *(case("batch_train", stage, dtype="bf16", backward=back) for stage in stages for back in both),
        *(case("batch_train", stages[0], dtype="bf16", channels_last=True, backward=back) for back in both),
        *(case("batch_train", stages[0], backward=back) for back in both),
        case("batch_eval", stages[0], dtype="bf16"),
        *(
            case(kind, shape, dtype="bf16", backward=back)
            for kind in ("layer", "rms")
            for shape in rows
            for back in both
        ),
        *(case(kind, rows[1]) for kind in ("layer", "rms")),
        *(case("group", stages[0], groups=32, backward=back) for back in both),
        *(case("instance", stages[0], dtype="bf16", backward=back) for back in both),
    )


def _make_inputs(case: NormCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.kernels.norm import _workload

    return _workload.make_inputs(case, seed, device)


def _add_backward(case: NormCase, call: Call) -> Call:
    from archbench.kernels.norm import _workload

    return _workload.workload(case, call)


def _check(case: NormCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.kernels.norm import _workload

    return _workload.gate(case, inputs, outputs)


def _skip(case: NormCase, place: Place) -> str | None:
    if place.device == "cpu" and case.elements > CPU_ELEMENTS:
        return f"{case.elements} elements are a GPU's work; CPU cases have at most {CPU_ELEMENTS}"
    if place.device == "cuda" and case.threads:
        return "a thread count means nothing on a GPU"
    # Inputs and outputs, and the reference: some ten tensors of float64 live at once in its backward.
    needed = case.bytes_moved() * 2 + 10 * 8 * case.elements
    if needed > place.memory_bytes:
        return f"needs {needed / 2**30:.1f} GiB for inputs and the check; there are {place.memory_bytes / 2**30:.1f}"
    return None


NOTES = """\
Every contender answers the same question as torch's layers with their default epsilon of 1e-5: batch_norm in training
and with given statistics, layer_norm over the features of a token, instance_norm, group_norm, and rms_norm.

In training, batch normalization also returns the new running mean and the new running (unbiased) variance, as
nn.BatchNorm2d writes them into its buffers: they belong to its work and are checked. The old ones are inputs and stay
as they are, so torch's own call gets copies of them, twice C numbers.

"fwd" is the forward pass under torch.no_grad. "fwdbwd" is one forward and one backward through torch.autograd.grad
for a given gradient of the output: the output and the gradients of x, weight and bias are all checked. What a
contender saves between the passes is its choice.

Nothing here is limited by arithmetic. The limit is the bytes nobody can avoid: x read and y written, and with a
backward x and dy read once more and dx written. Statistics have to be known before the first element can be
normalised, so a contender that streams x twice moves at least half as much again in the forward.

Inputs are hard on purpose: one statistic in five is of values with a mean of 1000 and a standard deviation of 1 (bf16:
16 and 1), where a variance formed as mean(x^2) - mean(x)^2 in single precision is off by percents, and one in five of
values whose variance of 1e-6 is below epsilon. Answers are compared element by element with a float64 computation on
the same inputs, and the bound of an element grows with the condition of its set, |mean| / sqrt(variance + epsilon).

Some questions are missing because torch's own answer fails here: on CPUs layer_norm in bf16 adds up the gradients of
weight and bias in bf16 (2 % off after 400 tokens), group_norm of channels-last images forms its variance as
mean(x^2) - mean(x)^2 in single precision, and batch_norm of channels-last images adds up a channel value by value."""

TRACK: Track[NormCase] = Track(
    name="norm",
    question="Which implementation of a normalization layer is fastest at equal answers?",
    version="1",
    baseline="torch_nn",
    test_cases=_test_cases(),
    bench_cases=_cpu_cases() + _gpu_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_add_backward,
    skip=_skip,
    preload=("torch", "torch._dynamo", "torch._inductor.compile_fx", "triton"),
    notes=NOTES,
)
