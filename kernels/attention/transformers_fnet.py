"""FNet's Fourier mixing as Hugging Face transformers has it: FNetBasicFourierTransform on v.

The module of FNetForMaskedLM and its siblings, in its default form (fftn over length and features; the other form is
for TPUs). It transforms one vector per token, so each KV head is handed over as a batch entry; the rest of FNet, dense
layers and norms, is left out as the projections of attention are. It answers another question than attention.

Letters: B batch, H query heads, G KV heads, R = H / G query heads per KV head, T length, D head size, N = B * G.

Source: Lee-Thorp et al. 2021, arXiv:2105.03824; https://github.com/huggingface/transformers
"""

from __future__ import annotations

from torch import Tensor

from archbench.kernels.attention import AttentionCase
from archbench.kernels.attention._fourier_gate import DIFFERS, gate
from archbench.quiet import quiet_import
from archbench.track import Call, Contender, Unavailable

with quiet_import():  # it imports torchao where that is installed
    from transformers.models.fnet.configuration_fnet import FNetConfig
    from transformers.models.fnet.modeling_fnet import FNetBasicFourierTransform


def _build(case: AttentionCase) -> Call:
    if case.causal:
        raise Unavailable("a Fourier transform over the sequence cannot be causal")
    if case.backward:
        raise Unavailable("Fourier mixing has no gradient for q and k")
    if case.dtype in ("bf16", "fp16"):
        raise Unavailable(f"torch.fft has no {case.dtype} on CPU, and on CUDA only fp16 at powers of two")
    transform = FNetBasicFourierTransform(FNetConfig(hidden_size=case.head_dim))
    shared = case.heads // case.groups

    def mixing(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        mixed_BGTD = transform(v_BGTD.flatten(0, 1))[0].unflatten(0, v_BGTD.shape[:2])
        return mixed_BGTD.repeat_interleave(shared, dim=1) if shared > 1 else mixed_BGTD.contiguous()

    return mixing


CONTENDER: Contender[AttentionCase] = Contender(build=_build, family="peer", differs=DIFFERS, gate=gate)
