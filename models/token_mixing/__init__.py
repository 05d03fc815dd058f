"""Token mixing: the same small encoder with attention, a Fourier transform, a learned matrix or nothing between tokens.

A contender's ``build(case)`` returns a factory ``seed -> model``. All models of a case have the same number of
parameters within 2 %: what a mixing does not spend, the feed-forward layers get. All make the same steps on the same
batches.

Source: Lee-Thorp et al. 2021, FNet, arXiv:2105.03824
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.track import Device, Place, Timing, Track

# A run of more positions than this in all its steps is a GPU's work: two cores take minutes for it.
CPU_POSITIONS = 5_000_000


@dataclass(frozen=True)
class TokenMixingCase:
    """Data, model and recipe of one training."""

    data: str  # a name of archbench.models.data
    length: int  # tokens: characters of a window, or patches of an image
    patch: int = 0  # height and width of a patch; 0: the data is text, and masked characters are predicted
    width: int = 64
    layers: int = 4
    heads: int = 4
    batch: int = 16
    steps: int = 800
    lr: float = 3e-3  # at its peak
    target: float = 0.5  # test error at which the time to target is taken
    test_rows: int = 10_000  # windows or images of the test split that are looked at, at most
    seeds: int = 5
    dtype: str = "fp32"
    threads: int | None = None

    @property
    def text(self) -> bool:
        return self.patch == 0

    @property
    def slug(self) -> str:
        task = "mlm" if self.text else f"patch{self.patch}"
        sizes = f"len{self.length}-d{self.width}-n{self.layers}-b{self.batch}-steps{self.steps}"
        return f"{self.data}-{task}-{sizes}"

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        return {
            "data": self.data,
            "task": "masked characters" if self.text else "classes",
            "length": self.length,
            "width": self.width,
            "layers": self.layers,
            "heads": self.heads,
            "batch": self.batch,
            "steps": self.steps,
        }

    def flops(self) -> None:
        """None: contenders compute different functions, and no operation is common to all answers."""

    def bytes_moved(self) -> None:
        """None, for the same reason."""


def _test_cases() -> tuple[TokenMixingCase, ...]:
    small: dict[str, Any] = {"width": 16, "layers": 3, "heads": 2, "batch": 4, "steps": 2, "seeds": 1, "test_rows": 8}
    return (TokenMixingCase("cpython", 24, **small), TokenMixingCase("shapes", 64, patch=4, **small))


def _bench_cases() -> tuple[TokenMixingCase, ...]:
    case = TokenMixingCase
    return (
        case("text", 128, target=0.8),
        case("mnist", 16, patch=7, batch=64, steps=700, lr=6e-3, target=0.1),
        case("text", 512, batch=4, steps=200, seeds=2, test_rows=200),
        case("text", 1024, batch=4, steps=100, seeds=2, test_rows=100),
        case("cifar10", 64, patch=4, width=128, batch=64, steps=8000, target=0.35),
        case("text", 512, width=256, heads=8, layers=6, batch=32, steps=5000),
    )


def _make_inputs(case: TokenMixingCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.models.token_mixing import _tasks

    return _tasks.make_inputs(case, seed, device)


def _training(case: TokenMixingCase, factory: Any) -> Any:
    from archbench.models.token_mixing import _workload

    return _workload.Training(case, factory)


def _check(case: TokenMixingCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.models.token_mixing import _workload

    return _workload.gate(case, inputs, outputs)


def _skip(case: TokenMixingCase, place: Place) -> str | None:
    positions = case.length * case.batch * case.steps
    if place.device == "cpu" and positions > CPU_POSITIONS:
        return f"{positions:,} positions a run are a GPU's work; CPU cases have at most {CPU_POSITIONS:,}"
    return None


NOTES = """\
**Models.** A pre-norm encoder with learned positions. Masked characters are predicted from both sides (15 %, all
replaced by the mask), images are classified from the mean over their patches. Only the mixing of tokens differs:
attention (`scaled_dot_product_attention`), the real part of a 2-D Fourier transform over length and width, the same
with attention in the last two layers, two learned matrices, or nothing. The transform is orthonormal here: unscaled, as
FNet has it before its post-norm, it would drown a pre-norm residual.

**Equal size.** All models of a case have the same number of parameters within 2 %: what a mixing does not spend widens
the feed-forward layers. They make the same number of steps on the same batches with the same recipe, which was chosen
on attention. A mixing whose matrices alone are larger than the model with attention is left out.

**What is measured.** The time of one step (forward, backward, optimizer) in a duel with attention's; error and loss on
the test split after the last step, over seeds; training time to the target error; peak memory of a step. The text cases
of length 512 and 1024 are there for the time and memory of a step over length: their runs end long before anything but
the frequency of characters is learned. A block alone, at equal width, is the track mixing_block.

**FNet's figures beside ours.** The paper reports 92 to 97 % of BERT's accuracy on GLUE, and training 80 % faster on
GPUs and 70 % on TPUs at length 512, with models of 100 million parameters and more, and with fewer parameters than
BERT. Ours have 0.2 million and train for a minute: they rank mixings at this size and budget, and say nothing of
pre-training.

Fourier mixing reads the whole sequence, so nothing here is causal, and there is no decoder."""

TRACK: Track[TokenMixingCase] = Track(
    name="token_mixing",
    question="What does a fixed Fourier transform in attention's place cost in quality, and what does it buy in time?",
    version="1",
    baseline="attention",
    test_cases=_test_cases(),
    bench_cases=_bench_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_training,
    skip=_skip,
    timing=Timing(deadline_s=900),
    protocol="training",
    quality="test_error",
    on_request="25 minutes",
    preload=("torch",),
    notes=NOTES,
)
