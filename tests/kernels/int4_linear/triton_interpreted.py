"""Run ``triton_w4a16`` in Triton's interpreter, on CPU: its answers, and no read of unset memory.

A program of its own, because the interpreter is chosen when the kernels are imported (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton

from archbench.kernels.int4_linear import TRACK, Int4Case
from archbench.kernels.int4_linear.triton_w4a16 import CONTENDER, Linear

# Beside the track's cases: K in parts and in steps, rows and tokens that fill no tile, half a chunk at the end of K.
CASES = (
    Int4Case(1, 32, 1, kind="w4a16"),
    Int4Case(1, 96, 33, kind="w4a16", layers=2),
    Int4Case(1, 2080, 20, kind="w4a16", layers=2),
    Int4Case(1, 192, 24, kind="w4a16", group=96),
    Int4Case(2, 32, 16, kind="w4a16"),
    Int4Case(16, 96, 65, kind="w4a16", layers=2),
    Int4Case(17, 1056, 40, kind="w4a16"),
    Int4Case(40, 128, 130, kind="w4a16", group=64),
    Int4Case(130, 192, 140, kind="w4a16", group=96),
)


def main() -> None:
    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    # What torch.empty returns is NaN: a row that no kernel writes, or a tile read past its end, shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for case in (*TRACK.test_cases, *CASES):
        if case.kind == "w4a16":
            inputs = TRACK.make_inputs(case, 21, "cpu")
            linear = CONTENDER.build(case)
            print("right", case.slug, f"{TRACK.gate(case, inputs, linear(*inputs)):.1e}", flush=True)
    for tokens in (1, 3):  # an input that is no number stays none, and in its own token
        case = Int4Case(tokens, 64, 16, kind="w4a16")
        (x,) = TRACK.make_inputs(case, 22, "cpu")
        x[-1, 40] = torch.nan
        y = Linear(case)(x)
        assert y[0, -1].isnan().all()
        assert y[0, :-1].isfinite().all()
    print("done")


if __name__ == "__main__":
    main()
