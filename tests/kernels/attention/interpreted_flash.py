"""Run ``triton_flash`` in Triton's interpreter, on CPU: its answers, its registration, and no read of unset memory.

A program of its own, because the interpreter is chosen when the kernels are imported (TRITON_INTERPRET=1). The
operators run the first configuration with pointers; both backwards and the tensor descriptors of sm_90 are asked for
by name.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from archbench.kernels.attention import TRACK, AttentionCase
from archbench.kernels.attention import _triton_flash_launch as launch
from archbench.kernels.attention._triton_flash_space import Config
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
# Blocks of queries shorter and longer than those of keys, and as long.
SHAPES = (
    (AttentionCase(heads=4, kv_heads=2, length=100, dtype="fp16", causal=True, backward=True), 32, 64),
    (AttentionCase(batch=2, heads=2, length=96, dtype="bf16", causal=True, backward=True), 64, 32),
    (AttentionCase(heads=2, length=128, dtype="fp16", causal=True, backward=True), 64, 64),
    (AttentionCase(heads=2, kv_heads=1, length=70, head_dim=128, dtype="bf16", backward=True), 64, 32),
)


def gradients(case: AttentionCase, inputs: tuple[Tensor, ...], config: Config, fused: bool) -> tuple[Tensor, ...]:
    """out, dq, dk, dv with one configuration for every kernel."""
    q, k, v, dout = inputs
    saved = launch.Saved(q, k, v, *launch.forward(q, k, v, case.causal, config), dout, case.causal)
    if fused:
        return saved.out_BHTD, *launch.one_pass(saved, config)
    row_sum = launch.row_sums(saved)
    return saved.out_BHTD, launch.split_queries(saved, row_sum, config), *launch.split_keys(saved, row_sum, config)


def check_hostile_values() -> None:
    """The integer sums: an outlier leaves the rest exact, zeros stay zeros, and what is not a number stays none."""
    case = AttentionCase(heads=2, kv_heads=1, length=40, dtype="fp16", causal=True, backward=True)
    config = Config(32, 32, 4, 1)
    q, k, v, dout = TRACK.make_inputs(case, 23, "cpu")
    k[:, :, 7] *= 30
    v[:, :, 9] *= 30
    dout[:, 0, 20:] = 0
    outlier = (q, k, v, dout)
    one, other = (gradients(case, outlier, config, fused)[1] for fused in (True, False))
    error = (one - other).abs().max() / other.abs().max()
    print("outlier", f"{error.item():.1e}")
    assert not one[:, 0, 20:].any()
    for which in range(3):  # k, v, dout
        spoilt = [tensor.clone() for tensor in outlier]
        spoilt[1 + which][0, 0, 3, 5] = torch.nan
        assert gradients(case, tuple(spoilt), config, True)[1].isnan().any(), which


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
    for case, block_q, block_k in SHAPES:
        inputs = TRACK.make_inputs(case, 24, "cpu")
        for fused, tma in ((False, True), (True, False), (True, True)):
            outputs = gradients(case, inputs, Config(block_q, block_k, 4, 1, tma), fused)
            print(f"{case.slug}/{fused=}/{tma=}", f"{TRACK.gate(case, inputs, outputs):.1e}")
    check_hostile_values()
    case = AttentionCase(heads=2, kv_heads=1, length=20, causal=True, backward=True)
    q, k, v, dout = TRACK.make_inputs(case, 22, "cpu")
    out, logsumexp = flash_forward(q, k, v, True)
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    print(torch.library.opcheck(flash_forward, (*leaves, True)))
    print(torch.library.opcheck(flash_backward, (q, k, v, out, logsumexp, dout, True)))
    print("done")


if __name__ == "__main__":
    main()
