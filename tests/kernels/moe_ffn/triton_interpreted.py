"""Run ``triton_grouped`` in Triton's interpreter, on CPU: its answers and gradients, and no read of unset memory.

A program of its own, because the interpreter is chosen when the kernels are imported (TRITON_INTERPRET=1).
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from archbench.kernels.moe_ffn import TRACK, MoeCase, triton_grouped
from archbench.kernels.moe_ffn._routing import route
from archbench.kernels.moe_ffn._triton_space import Config

# Beside the track's cases, with tiles of 16 that nothing fills: whether tiles come by
# descriptors and programs stay, and a case.
SMALL = (
    (True, MoeCase(1, 20, 24, 20, 3, backward=True)),
    (True, MoeCase(1, 20, 16, 32, 3, dtype="bf16", backward=True)),
    (True, MoeCase(2, 11, 16, 20, 3, router="gshard", capacity_factor=1.0, backward=True)),
    (True, MoeCase(1, 17, 20, 12, 3, router="expert_choice", capacity_factor=2.0, backward=True)),
    (False, MoeCase(1, 23, 17, 9, 3, backward=True)),
    (False, MoeCase(1, 400, 4, 3, 2, top_k=1, skew=8.0)),  # an expert with more tiles than a group
    (False, MoeCase(1, 8, 4, 196, 2, top_k=1, backward=True)),  # a gradient with more tiles than a group
)


def small_tiles(copied: bool) -> Any:
    """Blocks of 16 for every kernel, while it lasts."""
    config = Config(16, 16, 16, 4, 1, tma=copied, stays=copied)
    return mock.patch.multiple(
        triton_grouped,
        rows_of_a_tile=lambda *_: config.block_m,
        _choose=lambda kernel, *_: Config(16, 32, 16, 4, 1, tma=copied) if kernel == "hidden" else config,
    )


def check(label: str, case: MoeCase, shape: Any = lambda tensor: tensor) -> None:
    inputs = TRACK.make_inputs(case, 21, "cpu")
    outputs = TRACK.workload(case, triton_grouped.CONTENDER.build(case))(*map(shape, inputs))
    print("right", label, f"{TRACK.gate(case, inputs, outputs):.1e}", flush=True)


def check_that_an_expert_keeps_to_itself() -> None:
    """A gradient that is no number stays in its token and in the expert that answered it."""
    case = MoeCase(1, 24, 16, 16, 4, top_k=1, backward=True)
    x, router, w_in, w_out, uniform, dy = TRACK.make_inputs(case, 22, "cpu")
    with torch.no_grad():
        routing = route(case, x, router, uniform)
    expert_N = torch.empty(24, dtype=torch.int64).scatter_(0, routing.token_A, routing.expert_A)
    dy[0, 7, 3] = torch.nan
    y, dx, _, dw_in, dw_out = TRACK.workload(case, triton_grouped.CONTENDER.build(case))(
        x, router, w_in, w_out, uniform, dy
    )
    assert y.isfinite().all()
    assert dx.isfinite().all(-1).logical_not().flatten().nonzero().tolist() == [[7]]
    for gradient in (dw_in, dw_out):
        assert gradient.isfinite().all(-1).all(-1).logical_not().nonzero().tolist() == [[int(expert_N[7])]]


def strided(tensor: Tensor) -> Tensor:
    """The same numbers as a slice of something else, off the 16 bytes that wide loads need."""
    wider = torch.stack((tensor, tensor), -1)
    return wider[..., 1]


def shifted(tensor: Tensor) -> Tensor:
    return torch.cat((tensor.new_zeros(1), tensor.flatten()))[1:].view(tensor.shape)


def main() -> None:
    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    # What torch.empty returns is NaN: a row that no kernel writes, or a tile read past its end, shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for case in TRACK.test_cases:
        if case.dtype != "fp64":
            check(case.slug, case)
    for copied, case in SMALL:
        with small_tiles(copied):
            check(f"{case.slug}/{copied=}", case)
    case = MoeCase(1, 9, 8, 8, 3, backward=True)
    with small_tiles(True):
        check_that_an_expert_keeps_to_itself()
        check("strided", case, strided)
        check("shifted", case, shifted)
    print("done")


if __name__ == "__main__":
    main()
