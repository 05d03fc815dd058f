"""Run ``triton_grouped`` in Triton's interpreter, on CPU: its answers and gradients, and no read of unset memory.

A program of its own, because the interpreter is chosen when the kernels are imported (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton

from archbench.kernels.moe_ffn import TRACK, MoeCase
from archbench.kernels.moe_ffn import triton_grouped as contender


def check(label: str, case: MoeCase) -> None:
    inputs = TRACK.make_inputs(case, 21, "cpu")
    outputs = TRACK.workload(case, contender.CONTENDER.build(case))(*inputs)
    print("right", label, f"{TRACK.gate(case, inputs, outputs):.1e}", flush=True)


def main() -> None:
    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    # What torch.empty returns is NaN: a row that no kernel writes, or a tile read past its end, shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for case in TRACK.test_cases:
        if case.dtype != "fp64":
            check(case.slug, case)
    print("done")


if __name__ == "__main__":
    main()
