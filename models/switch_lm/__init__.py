"""A scaled-down Switch Transformer: the same language model with dense feed-forward layers, or with experts in every
second one.

A token meets one expert, so all models but the wide one spend the same operations on a token, beside the router. A
contender's ``build(case)`` returns a factory ``seed -> model``. All make the same steps on the same windows of a text;
``bits_per_byte`` on its last tenth ranks.

A model answers tokens (B, T) with a ``_model.Output``: logits of the next characters, and of each Switch layer a
``Routed``, in an empty list where there is none. ``operations()`` says what a token's forward pass costs, and
``double()`` leaves it working: in float64 it is asked whether it looks ahead. What its memory should be is known for
a ``_model.LanguageModel`` of ``Dense`` and ``Switch`` layers; others are measured only. A factory may say
``is_baseline``, and is believed where its model has the dense model's parameters by name and shape.

Source: Fedus et al. 2021, Switch Transformers, arXiv:2101.03961
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from archbench.track import Device, Place, Timing, Track

PRECISIONS = ("fp32", "bf16")
# Multiply-adds count as two. A run of more is a GPU's work: two cores take minutes for it.
CPU_FLOPS = 1.2e13


@dataclass(frozen=True)
class SwitchCase:
    """Text, model and recipe of one training."""

    data: str = "text"  # a text of archbench.models.data
    length: int = 64  # characters of a window
    width: int = 64
    layers: int = 4  # the second, fourth, ... is a Switch layer
    heads: int = 4
    batch: int = 64  # windows of a step
    steps: int = 800
    lr: float = 4e-3  # at its peak
    capacity_factor: float = 1.25  # an expert takes so many times a token's share of a batch, rounded up
    precision: str = "fp32"  # bf16: products in bfloat16 (autocast), weights and routers in float32
    target: float = 2.4  # bits per byte at which the time to target is taken
    curve_rows: int = 512  # windows spread over the test text, looked at during training; at the end all of them are
    seeds: int = 3
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r}: allowed are {', '.join(PRECISIONS)}")
        for name in ("length", "width", "layers", "heads", "batch", "steps", "curve_rows", "seeds", "threads"):
            count = getattr(self, name)
            if (type(count) is not int or count < 1) and not (name == "threads" and count is None):
                raise ValueError(f"{name} is {count!r}, must be a whole number, at least 1")
        for name in ("lr", "capacity_factor", "target"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value!r}, must be positive and finite")
        if self.layers < 2:
            raise ValueError(f"layers is {self.layers}: every second one is a Switch layer, so at least 2")
        if self.width % self.heads:
            raise ValueError(f"heads is {self.heads}: must divide the width {self.width}")

    @property
    def slug(self) -> str:
        sizes = f"len{self.length}-d{self.width}-n{self.layers}-b{self.batch}-steps{self.steps}"
        name = f"{self.data}-{sizes}-cf{self.capacity_factor:g}-{self.precision}"
        return f"{name}-t{self.threads}" if self.threads else name

    @property
    def axes(self) -> dict[str, str | int | float | bool]:
        axes: dict[str, str | int | float | bool] = {
            "data": self.data,
            "length": self.length,
            "width": self.width,
            "layers": self.layers,
            "heads": self.heads,
            "batch": self.batch,
            "steps": self.steps,
            "capacity_factor": self.capacity_factor,
            "dtype": self.precision,
        }
        return axes | {"threads": self.threads} if self.threads else axes

    @property
    def dtype(self) -> str:
        return self.precision

    @property
    def hidden(self) -> int:
        return 4 * self.width

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.batch * self.length

    def is_switched(self, layer: int) -> bool:
        return layer % 2 == 1

    def flops(self) -> float:
        """Of the products of a step that every contender makes for every token, forward and backward.

        Without the head, whose size is the text's, and without the feed-forward layers that become Switch layers, which
        tokens beyond an expert's capacity skip.
        """
        dense = sum(not self.is_switched(layer) for layer in range(self.layers))
        mixing = 8 * self.width**2 + 2 * self.length * self.width
        return 3.0 * self.tokens * (self.layers * mixing + dense * 4 * self.width * self.hidden)

    def bytes_moved(self) -> None:
        """Not defined: what a step must move depends on what it keeps between its passes."""

    @property
    def run_flops(self) -> float:
        """Of the dense model's run, the head left out."""
        switched = sum(self.is_switched(layer) for layer in range(self.layers))
        return self.steps * (self.flops() + 3.0 * self.tokens * switched * 4 * self.width * self.hidden)


def _make_inputs(case: SwitchCase, seed: int, device: Device) -> tuple[Any, ...]:
    from archbench.models.switch_lm import _text

    return _text.make_inputs(case, seed, device)


def _training(case: SwitchCase, factory: Any) -> Any:
    from archbench.models.switch_lm import _workload

    return _workload.Training(case, factory)


def _check(case: SwitchCase, inputs: tuple[Any, ...], outputs: Any) -> float:
    from archbench.models.switch_lm import _workload

    return _workload.gate(case, inputs, outputs)


def _skip(case: SwitchCase, place: Place) -> str | None:
    if place.device == "cpu" and case.run_flops > CPU_FLOPS:
        return f"{case.run_flops:.0e} operations a run are a GPU's work; CPU cases have at most {CPU_FLOPS:.0e}"
    return None


def _test_cases() -> tuple[SwitchCase, ...]:
    small: dict[str, Any] = {"length": 12, "width": 16, "heads": 2, "batch": 3, "steps": 2, "curve_rows": 6, "seeds": 1}
    return (
        SwitchCase("cpython", layers=2, **small),
        SwitchCase("cpython", layers=3, capacity_factor=1.0, precision="bf16", **small),
    )


def _bench_cases() -> tuple[SwitchCase, ...]:
    gpu: dict[str, Any] = {"length": 256, "width": 512, "layers": 8, "heads": 8, "batch": 64, "steps": 5000, "lr": 1e-3}
    return (
        SwitchCase(),
        SwitchCase(capacity_factor=1.0),
        SwitchCase(precision="bf16", seeds=2),
        SwitchCase(precision="bf16", **gpu),
        SwitchCase(precision="bf16", capacity_factor=2.0, **gpu),
    )


NOTES = """\
**Models.** A decoder of characters. `dense` has a feed-forward layer in every block; in `switch_e4`, `switch_e8` and
`switch_e16` every second one is a Switch layer, in which a router sends a token to one of 4, 8 or 16 experts of the
same size. So a token costs the same operations but for the router, and what grows is memory. `dense_wide` has as many
parameters as `switch_e4`, and every token meets all of them. An expert takes `capacity_factor` times its even share of
a batch, in the order of the tokens; a token that finds no room passes the layer by the residual, and is counted. For
each Switch layer the loss has 1e-2 of the load-balancing loss and 1e-3 of the z-loss. Recipe, windows and order are
those of all; the learning rate was chosen on `dense`.

**Quality** is `bits_per_byte` on all windows of the last tenth of the text after the last step: equal steps, equal
operations, and at the even load of the experts nearly equal time. Bytes are those of the characters in UTF-8.
`bits_per_byte_equal_time` is where the run stood when the dense run of its seed had ended, its steps being slower by
`step_slowdown` (measured in pairs of steps, right after the run); a quicker one gets no more steps than it made.
`bits_per_byte_equal_flops` is the
same for the operations of the products. `steps_share` is the share of the steps after which a run is as good as the
dense one of its seed at its end: half of it is twice as fast in steps. `seconds_share` is that times `step_slowdown`.
Both compare the two curves, which are of `curve_rows` windows spread evenly over the test text, where the ranked number
is of all windows. Both are left out where a run never gets there, so their mean is over the seeds that did. In the
middle of a run the learning rate is still high: what is read off there is to a Switch model's disadvantage.

**No answer may depend on what follows it.** After a run the last characters of a window are changed, and the logits
before them must stay, in float64 to nine digits; a model that looks ahead has no row.

**Load.** `load_entropy` is that of the experts' load, as asked for, over the largest there can be: 1 is even.
`load_imbalance` is 1 less that, on the whole test text. `dropped_share` is the share of tokens without an expert. Both
are means over the Switch layers.

**Selective precision.** In bf16 cases products are computed in bfloat16 and weights, residual and routers in float32;
`switch_e8_bf16_router` computes its routers in bfloat16 too.

**Beside the paper.** It reports seven times fewer steps to the quality of T5-Base, with 64 experts and more, 220
million parameters active, a batch of a million tokens and 100,000 steps on C4. Here 0.2 million parameters are active
and 1.2 million there at most, and they read three million characters, three times their text: that says what routing
costs and which way it leans at this size, and nothing of how it grows."""

MEMORY = ("parameters", "gradients", "optimizer", "buffers", "activations", "routing")

TRACK: Track[SwitchCase] = Track(
    name="switch_lm",
    question="What do layers of experts gain over dense ones: per step, per second and per byte of memory?",
    version="1",
    baseline="dense",
    test_cases=_test_cases(),
    bench_cases=_bench_cases(),
    make_inputs=_make_inputs,
    gate=_check,
    workload=_training,
    skip=_skip,
    item="token",
    items=lambda case: case.tokens,
    timing=Timing(budget_s=6.0, deadline_s=86_400.0),
    protocol="training",
    quality="bits_per_byte",
    derivation="moe",
    stacks={
        "Memory of a step, measured": tuple(f"{part}_bytes" for part in MEMORY),
        "Memory of a step, predicted": tuple(f"{part}_formula_bytes" for part in MEMORY),
    },
    on_request="half an hour for the first case",
    preload=("torch",),
    notes=NOTES,
)
