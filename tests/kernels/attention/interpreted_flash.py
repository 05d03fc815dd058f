"""Run ``triton_flash`` in Triton's interpreter, on CPU: its answers, its registration, and no read of unset memory.

A program of its own, because the interpreter is chosen when the kernels are imported (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import torch
import triton

from archbench.kernels.attention import TRACK, AttentionCase
from archbench.kernels.attention.triton_flash import CONTENDER, flash_backward, flash_forward

CASES = (
    AttentionCase(heads=2, length=1, causal=True, backward=True),
    AttentionCase(heads=2, length=63, dtype="fp16"),
    AttentionCase(batch=2, heads=2, length=100, causal=True, backward=True),
    AttentionCase(heads=4, kv_heads=1, length=127, head_dim=128, backward=True),
    AttentionCase(heads=4, kv_heads=2, length=128, dtype="bf16", causal=True, backward=True),  # whole blocks only
    AttentionCase(heads=2, length=128, dtype="fp16", backward=True),
    AttentionCase(heads=2, kv_heads=1, length=200, head_dim=128, dtype="bf16", causal=True, backward=True),
    AttentionCase(heads=2, length=256, dtype="bf16", causal=True),
)


def main() -> None:
    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    # What torch.empty returns is NaN: a row that no kernel writes, or a tile read past its end, shows.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for case in CASES:
        inputs = TRACK.make_inputs(case, 21, "cpu")
        # Strided as a model hands them over: heads split off the last dimension.
        strided = tuple(tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in inputs)
        outputs = TRACK.workload(case, CONTENDER.build(case))(*strided)
        print(case.slug, f"{TRACK.gate(case, inputs, outputs):.1e}")
    case = AttentionCase(heads=2, kv_heads=1, length=20, causal=True, backward=True)
    q, k, v, dout = TRACK.make_inputs(case, 22, "cpu")
    out, logsumexp = flash_forward(q, k, v, True)
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    print(torch.library.opcheck(flash_forward, (*leaves, True)))
    print(torch.library.opcheck(flash_backward, (q, k, v, out, logsumexp, dout, True)))
    print("done")


if __name__ == "__main__":
    main()
