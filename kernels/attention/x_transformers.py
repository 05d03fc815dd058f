"""x-transformers: its attention core, Attend, with the flash switch its README recommends.

The module between the projections of every x-transformers layer, called on given q, k and v. With the switch on it ends
in torch's scaled_dot_product_attention, held to the backends flash, efficient and math (not cuDNN); what it adds is the
handling of its many options. Its grouped heads take turns (query head h reads KV head h mod G) where the track's stand
side by side, so each group is handed over as a batch entry of its own with one KV head: the same numbers, by views
alone. A shared KV head is repeated by a stride of zero; its gradients are formed per query head and then added up.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, D head size, N = B * G groups.

Source: https://github.com/lucidrains/x-transformers
"""

from __future__ import annotations

from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.quiet import quiet_import
from archbench.track import Call, Contender

with quiet_import():  # it compiles a function by torch.jit.script, which torch calls deprecated
    from x_transformers.attend import Attend


def _build(case: AttentionCase) -> Call:
    attend = Attend(causal=case.causal, flash=True)

    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        return attend(q_BHTD, k_BGTD, v_BGTD)[0]

    def grouped_attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        q_NRTD = q_BHTD.unflatten(1, (case.groups, -1)).flatten(0, 1)
        k_N1TD, v_N1TD = k_BGTD.flatten(0, 1).unsqueeze(1), v_BGTD.flatten(0, 1).unsqueeze(1)
        return attend(q_NRTD, k_N1TD, v_N1TD)[0].reshape(q_BHTD.shape)

    return grouped_attention if case.grouped else attention


CONTENDER: Contender[AttentionCase] = Contender(build=_build, family="peer")
