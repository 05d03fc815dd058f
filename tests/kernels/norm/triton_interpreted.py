"""Run ``triton_fused`` in Triton's interpreter, on CPU: its answers, its registration, and no read of unset memory.

A program of its own, because the interpreter is chosen when the kernels are imported (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton

from archbench.kernels.norm import TRACK, NormCase
from archbench.kernels.norm.triton_fused import CONTENDER, norm_backward, norm_forward

# Beside the track's cases: several chunks of a plane, of a batch and of a set; programs that own a set, of one plane or
# several; layouts and kinds that meet no test case.
CASES = (
    NormCase("batch_train", (9, 3, 67, 71), backward=True),
    NormCase("batch_train", (40, 40, 3, 3), channels_last=True, backward=True),
    NormCase("batch_eval", (2, 70, 9, 9), dtype="bf16", channels_last=True, backward=True),
    NormCase("instance", (8, 9, 33, 35), backward=True),
    NormCase("instance", (3, 6, 5, 7), channels_last=True, backward=True),
    NormCase("group", (8, 160, 11, 9), groups=8, backward=True),
    NormCase("group", (32, 14, 13, 13), groups=2, dtype="bf16", backward=True),
    NormCase("group", (3, 12, 65, 65), groups=2, backward=True),
    NormCase("group", (3, 12, 7, 5), groups=4, channels_last=True, backward=True),
    NormCase("layer", (3, 41, 33), backward=True),
)


def main() -> None:
    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    # What torch.empty returns is NaN: a row that no kernel writes, or a tile read past its end, shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for case in (*TRACK.test_cases, *CASES):
        if case.dtype == "fp64":
            continue
        inputs = TRACK.make_inputs(case, 21, "cpu")
        outputs = TRACK.workload(case, CONTENDER.build(case))(*inputs)
        print("right", case.slug, f"{TRACK.gate(case, inputs, outputs):.1e}", flush=True)
    for kind, shape in (("batch_train", (2, 3, 5, 7)), ("batch_eval", (2, 3, 5, 7)), ("layer", (2, 3, 5))):
        case = NormCase(kind, shape, backward=True)
        *given, dy = TRACK.make_inputs(case, 22, "cpu")
        leaves = [tensor.clone().requires_grad_() for tensor in given[:3]]
        running = given[3:] or [None, None]
        _, mean, rstd, *_ = norm_forward(*given[:3], *running, kind, 1)
        print(torch.library.opcheck(norm_forward, (*leaves, *running, kind, 1)))
        statistics = running if kind == "batch_eval" else (mean, rstd)
        print(torch.library.opcheck(norm_backward, (*given[:2], *statistics, dy, kind, 1)))
    # Strided as a slice is: neither layout.
    case = NormCase("instance", (2, 3, 4, 5), backward=True)
    x, weight, bias, dy = TRACK.make_inputs(case, 23, "cpu")
    strided = torch.stack((x, x), -1)[..., 0], weight, bias, torch.stack((dy, dy), -1)[..., 0]
    TRACK.gate(case, (x, weight, bias, dy), TRACK.workload(case, CONTENDER.build(case))(*strided))
    print("done")


if __name__ == "__main__":
    main()
