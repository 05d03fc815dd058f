"""Which norm for a ResNet-18: the same network, data, recipe and seeds, with the norm exchanged.

A contender is a norm. A case is a data set, a width, a batch size and a length of training; its runs report the test
error, the time to a target, and how well behaved the training is: divergence over learning rates, spread of the
gradient's norm, and how far the loss and the gradient change along a step (Santurkar et al. 2018, arXiv:1805.11604).

Source: He et al. 2015, arXiv:1512.03385
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.track import Call, Device, Place, Timing, Track

FULL_WIDTH = 64
PIXELS = {"mnist": 28, "cifar10": 32, "imagenet-1k": 224}
LARGEST = {"mnist": 60_000, "cifar10": 50_000, "imagenet-1k": 1_281_167}
LEAST_WIDTH = 4
PRECISIONS = ("fp32", "bf16")
# Multiply-adds of a forward pass at width 64, for each pixel the first stage works on.
MULTIPLY_ADDS_A_PIXEL = 543_000
CPU_FLOPS = 2e13  # of a case's runs of one seed: some five minutes on two cores


@dataclass(frozen=True)
class ResNetCase:
    """One training."""

    data: str = "cifar10"
    images: int = 50_000  # training images; fewer than the set has: a fixed random part of it
    test_images: int = 10_000
    width: int = FULL_WIDTH  # channels of the first stage; the paper's is 64
    batch: int = 64
    epochs: int = 30
    seeds: int = 5
    target_error: float = 0.1
    precision: str = "fp32"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.data not in PIXELS:
            raise ValueError(f"data {self.data!r}: allowed are {', '.join(PIXELS)}")
        if not 0 < self.batch <= self.images <= LARGEST[self.data]:
            raise ValueError(
                f"batch {self.batch}, images {self.images}: a batch has 1 or more of the images, {self.data} has "
                f"{LARGEST[self.data]} of them"
            )
        # Powers of two: every stage then divides into group norm's groups.
        if self.width < LEAST_WIDTH or self.width & (self.width - 1):
            raise ValueError(f"width {self.width}: allowed are powers of two from {LEAST_WIDTH}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: allowed are {', '.join(PRECISIONS)}")
        for name in ("test_images", "epochs", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: at least 1")

    @property
    def slug(self) -> str:
        parts = [self.data]
        parts += [f"n{self.images}"] if self.images < LARGEST[self.data] else []
        parts += [f"w{self.width}", f"b{self.batch}", f"e{self.epochs}"]
        parts += [self.precision] if self.precision != "fp32" else []
        return "-".join([*parts, f"t{self.threads}"] if self.threads else parts)

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        return {
            "data": self.data,
            "images": self.images,
            "width": self.width,
            "batch": self.batch,
            "epochs": self.epochs,
            "seeds": self.seeds,
            "dtype": self.precision,
        }

    @property
    def dtype(self) -> str:
        return self.precision

    @property
    def stem(self) -> str:
        """The paper's for large images, one 3x3 convolution for small ones."""
        return "imagenet" if self.data == "imagenet-1k" else "cifar"

    @property
    def steps(self) -> int:
        return self.epochs * (self.images // self.batch)

    def flops(self) -> float:
        """Of the convolutions of one step: forward, and twice as much backward. Edges are not subtracted."""
        size = PIXELS[self.data] // (4 if self.stem == "imagenet" else 1)
        scale = (self.width / FULL_WIDTH) ** 2
        return 3 * 2.0 * MULTIPLY_ADDS_A_PIXEL * size * size * scale * self.batch

    def bytes_moved(self) -> None:
        """Not defined: what a step must move depends on what it keeps between its passes."""


def _slim(data: str, batch: int, **changes: Any) -> ResNetCase:
    """A case for two cores: an eighth of the width, a twelfth of CIFAR-10, two epochs."""
    fields = {"images": 4096, "test_images": 2000, "width": 8, "epochs": 2, "seeds": 3, "target_error": 0.7}
    return ResNetCase(data, batch=batch, **(fields | changes))


def _bench_cases() -> tuple[ResNetCase, ...]:
    return (
        _slim("cifar10", 2),
        _slim("cifar10", 64),
        _slim("cifar10", 8),
        _slim("cifar10", 256),
        _slim("mnist", 64, images=4000, test_images=1000, target_error=0.1),
        *(ResNetCase("cifar10", batch=batch, precision="bf16") for batch in (64, 8, 256)),
        ResNetCase("mnist", images=60_000, batch=64, epochs=10, target_error=0.01, precision="bf16"),
        ResNetCase(
            "imagenet-1k",
            images=LARGEST["imagenet-1k"],
            test_images=50_000,
            batch=256,
            epochs=90,
            seeds=1,
            target_error=0.4,
            precision="bf16",
        ),
    )


def _make_inputs(case: ResNetCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.models.resnet_norms import _workload

    return _workload.make_inputs(case, seed, device)


def _training(case: ResNetCase, factory: Call) -> Call:
    from archbench.models.resnet_norms import _workload

    return _workload.Training(case, factory)


def _check(case: ResNetCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.models.resnet_norms import _workload

    return _workload.gate(case, inputs, outputs)


def _skip(case: ResNetCase, place: Place) -> str | None:
    if place.device == "cpu" and case.flops() * case.steps > CPU_FLOPS:
        return (
            f"{case.flops() * case.steps:.0e} operations a run are a GPU's work; CPU cases have at most {CPU_FLOPS:.0e}"
        )
    return None


NOTES = """\
Five networks that differ in one line: what stands behind each convolution of a ResNet-18. Data, augmentation, order,
initial weights of what they share, recipe and number of images seen are the same, and nothing was tuned for one of
them: SGD with Nesterov momentum 0.9, weight decay 5e-4 (not on gains and shifts), 5 % warm-up, half a cosine, a peak
learning rate in proportion to the batch (0.4 at 256).

**Slim cases** are what two CPU cores finish in minutes: an eighth of the width, 4,096 of the training images, two
epochs, 2,000 test images. Errors are far above those of the full network; the order of norms at small batches is what
they are for. With few channels `group` has groups of at least four channels.

`batch` is evaluated with its running statistics, as it is used. A run that diverges counts with the error of chance.
`diverged` is the share of such runs. "divergence over log10 of the learning rate" repeats the first steps with
constant learning rates from a quarter to 64 times the case's own; such a probe has diverged when its loss ends, on
average over its second half, above 1.5 times that of knowing nothing.

`loss_range` is the spread of the loss along a step, relative to the loss: the gradient of a training batch is followed
for 0.5, 1, 2 and 4 times the learning rate. `gradient_change` is the largest relative change of the gradient on the
way (Santurkar et al. 2018). Both are medians of five looks over the run, and 1000 where the way leads to no number.
`grad_norm_spread` is the ratio of the 90th to the 10th percentile of the gradient's norm over the run. A run that
diverges has none of the three.

CIFAR-10 from a folder may have been encoded as lossy JPEG, which the row's data says: published errors on the original
images do not transfer."""

TRACK: Track[ResNetCase] = Track(
    name="resnet_norms",
    question="Which norm trains a ResNet-18 to the lowest error, how stably, and at what cost a step?",
    version="1",
    baseline="batch",
    test_cases=(
        ResNetCase("mnist", images=64, test_images=32, width=4, batch=2, epochs=1, seeds=2),
        ResNetCase("mnist", images=64, test_images=32, width=4, batch=16, epochs=1, seeds=2),
    ),
    bench_cases=_bench_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_training,
    skip=_skip,
    timing=Timing(budget_s=6.0, deadline_s=172_800.0),
    protocol="training",
    quality="test_error",
    on_request="about 25 minutes",
    preload=("torch", "torch._dynamo"),
    notes=NOTES,
)
