"""A Vision Transformer of 4 bits: what each method loses, and what the result costs to run.

A contender is a method: which numbers are rounded to how many bits, who finds their ranges, and whether the network is
trained on with them. A case is a data set, a network, a length of training, and what is asked of the edges (the first
and last layer) and of attention. For each seed one float network is trained; every method starts from it, and
quantisation-aware training makes as many further updates as the float network of the seed gets, with which it is
compared. ``test_error`` ranks, ``error_increase`` is its difference to ``fp32`` of the same seed.

The call that is timed is no training step but what remains of it all: the deployed network classifies a batch.

Source: Touvron et al. 2020, arXiv:2012.12877 (DeiT); Li et al. 2022, arXiv:2210.06707 (Q-ViT)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.models.vit_int4._plan import FLOAT, Bits, Plan, Ranges
from archbench.track import Call, Device, Place, Timing, Track, Unavailable

PIXELS = {"mnist": 28, "cifar10": 32, "imagenet-1k": 224}
LARGEST = {"mnist": 60_000, "cifar10": 50_000, "imagenet-1k": 1_281_167}
CHANNELS = {"mnist": 1}  # others have 3
CLASSES = {"imagenet-1k": 1000}  # others have 10
CPU_FLOPS = 1e14  # of a seed's training: some ten minutes on two cores


@dataclass(frozen=True)
class VitCase:
    """One network on one data set, and what is asked of its edges."""

    data: str = "cifar10"
    images: int = 50_000  # training images; fewer than the set has: a fixed random part of it
    test_images: int = 10_000
    patch: int = 8
    dim: int = 96
    depth: int = 5
    heads: int = 3
    batch: int = 128
    updates: int = 1500  # of the float network
    further: int = 600  # updates of quantisation-aware training, and of the float network it is compared with
    edges: int = 8  # bits of weights and inputs of the first and the last layer; 32: float
    attention: int = 4  # bits of queries, keys, values and probabilities; 32: float
    nonlinear: int = 4  # bits of what softmax and GELU are given; 32: float
    distil: bool = False  # quantisation-aware training learns the float network's answers
    answers: int = 32  # images of the batch that is timed
    seeds: int = 5
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.data not in PIXELS:
            raise ValueError(f"data {self.data!r}: allowed are {', '.join(PIXELS)}")
        if not 0 < self.batch <= self.images <= LARGEST[self.data]:
            raise ValueError(
                f"batch {self.batch}, images {self.images}: a batch has 1 or more of the images, {self.data} has "
                f"{LARGEST[self.data]} of them"
            )
        if self.patch < 1 or PIXELS[self.data] % self.patch:
            raise ValueError(f"patch {self.patch}: must divide the {PIXELS[self.data]} pixels of {self.data}")
        if self.heads < 1 or self.dim < self.heads or self.dim % self.heads:
            raise ValueError(f"heads {self.heads}: must divide the {self.dim} features")
        for name in ("edges", "attention", "nonlinear"):
            if getattr(self, name) not in (4, 8, 32):
                raise ValueError(f"{name} {getattr(self, name)}: allowed are 4, 8 and 32 bits")
        if self.answers > self.images:
            raise ValueError(f"answers {self.answers}: there are {self.images} images")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads {self.threads}: at least 1, or None for every core")
        for name in ("test_images", "depth", "updates", "further", "answers", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: at least 1")

    @property
    def slug(self) -> str:
        parts = [self.data]
        parts += [f"n{self.images}"] if self.images < LARGEST[self.data] else []
        parts += [f"p{self.patch}", f"d{self.dim}", f"l{self.depth}", f"u{self.updates}+{self.further}"]
        parts += [f"edges{self.edges}"] if self.edges != 8 else []
        parts += [f"attn{self.attention}"] if self.attention != 4 else []
        parts += [f"nl{self.nonlinear}"] if self.nonlinear != 4 else []
        parts += ["distil"] if self.distil else []
        for short, name in (("h", "heads"), ("b", "batch"), ("test", "test_images"), ("a", "answers"), ("s", "seeds")):
            if getattr(self, name) != getattr(VitCase, name):
                parts.append(f"{short}{getattr(self, name)}")
        return "-".join([*parts, f"t{self.threads}"] if self.threads else parts)

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        return {
            "data": self.data,
            "images": self.images,
            "patch": self.patch,
            "dim": self.dim,
            "depth": self.depth,
            "updates": self.updates,
            "further": self.further,
            "edges": self.edges,
            "attention": self.attention,
            "nonlinear": self.nonlinear,
            "distil": self.distil,
            "seeds": self.seeds,
        }

    @property
    def dtype(self) -> str:
        """Of the matrix rate that limits the deployed network: products of 4 and 8 bits run on 8-bit units."""
        return "int8"

    def plan(self, blocks: Bits, ranges: Ranges = "least_squares") -> Plan:
        """What a method with these bits for the blocks' matrices rounds; one of weights alone rounds no activation, and
        no activation has fewer bits than the blocks' inputs.
        """
        if blocks.activations == FLOAT:
            return Plan(blocks, Bits(self.edges), ranges=ranges)
        attention, nonlinear = (max(bits, blocks.activations) for bits in (self.attention, self.nonlinear))
        return Plan(blocks, Bits(self.edges, self.edges), attention, nonlinear, ranges)

    @property
    def tokens(self) -> int:
        return 1 + (PIXELS[self.data] // self.patch) ** 2

    def flops(self) -> float:
        """Of the timed call: matrices and attention of a batch."""
        matrices = self.tokens * self.depth * 12.0 * self.dim**2
        return 2 * self.answers * (matrices + 2.0 * self.depth * self.tokens**2 * self.dim)

    def bytes_moved(self) -> None:
        """Not defined: a small network's weights stay in a cache."""

    @property
    def training_flops(self) -> float:
        """Of a seed: forward and backward, the float network's updates and the further ones of two networks."""
        return 3 * self.flops() / self.answers * self.batch * (self.updates + 2 * self.further)


def _make_inputs(case: VitCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.models.vit_int4 import _workload

    return _workload.make_inputs(case, seed, device)


def _training(case: VitCase, method: Any) -> Call:
    try:
        from archbench.models.vit_int4 import _workload
    except ModuleNotFoundError as missing:
        raise Unavailable(f"needs the package {missing.name}") from missing
    return _workload.Training(case, method)


def _check(case: VitCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    raise AssertionError("the workload judges: a quantised network is right when it answers as its own rounding does")


def _skip(case: VitCase, place: Place) -> str | None:
    if place.device == "cpu" and case.training_flops > CPU_FLOPS:
        return f"{case.training_flops:.0e} operations a seed are a GPU's work; CPU cases have at most {CPU_FLOPS:.0e}"
    return None


def _bench_cases() -> tuple[VitCase, ...]:
    case = VitCase
    deit: dict[str, Any] = {
        "data": "imagenet-1k",
        "images": LARGEST["imagenet-1k"],
        "test_images": 50_000,
        "patch": 16,
        "depth": 12,
    }
    return (
        case(),
        case(edges=4),
        case(attention=32, nonlinear=32),
        case(distil=True),
        case("mnist", images=60_000, patch=7),
        case(patch=4, dim=384, depth=12, heads=6, updates=78_000, further=19_500),
        case(**deit, dim=192, heads=3, batch=1024, updates=375_000, further=37_500, seeds=1),
        case(**deit, dim=384, heads=6, batch=1024, updates=375_000, further=37_500, seeds=1),
    )


NOTES = """\
One float network is trained for each seed; all methods start from it, and it stays on this host, so that no method
has another one. AdamW, half a cosine, random crops and flips; nothing was tuned for one method. Training with
quantisation makes `further` updates from the float network, and `fp32` gets the same number, from the same point:
what a method wins by training longer is not counted as its own.

`error_increase` is the error on all test images less that of `fp32` of the same seed, a fraction: 0.01 is one point.
`loss_left_share` is that increase over the increase of rounding alone to the same bits (symmetric ranges to the
largest magnitude, as `ptq_w4a4` has them, no training): what training did not win back. `step_slowdown` is the time
of a training update over that of the float network, in pairs; that one computes attention with PyTorch's fused
function, as is usual, though at 17 tokens separate products are some 15 % faster. `calibration_s` is what it takes to
find ranges. `file_bytes` is the exported model's. `deployed_difference` is how far the share of right answers differs
between the network as it was trained and the exported one as ONNX Runtime executes it; above a tenth of a point there
is no row.

CIFAR-10 from a folder may have been encoded as lossy JPEG, which the row's data says: published errors on the
original images do not transfer."""

TRACK: Track[VitCase] = Track(
    name="vit_int4",
    question="What does a Vision Transformer lose at 4 bits, by which method, and what does it win?",
    version="1",
    baseline="fp32",
    test_cases=(
        VitCase(
            "mnist",
            images=64,
            test_images=64,
            patch=7,
            dim=32,
            depth=2,
            heads=2,
            batch=16,
            updates=6,
            further=3,
            answers=5,
            seeds=2,
        ),
        VitCase(
            "mnist",
            images=64,
            test_images=64,
            patch=14,
            dim=64,
            depth=1,
            heads=4,
            batch=16,
            updates=4,
            further=3,
            edges=4,
            attention=32,
            nonlinear=32,
            answers=9,
            seeds=1,
        ),
    ),
    bench_cases=_bench_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_training,
    skip=_skip,
    item="image",
    items=lambda case: case.answers,
    timing=Timing(budget_s=6.0, deadline_s=172_800.0),
    protocol="training",
    quality="test_error",
    derivation="quantization",
    on_request="half an hour for two methods at the first case, hours for all",
    preload=("torch", "torch._dynamo"),
    notes=NOTES,
)
