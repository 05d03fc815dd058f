"""scaled_dot_product_attention held to one backend, and why a backend has no kernel for a case.

Which dtypes, head sizes and head counts a backend takes differs between torch releases and GPUs, so no rule about that
is written down here: torch is asked, and a refusal becomes Unavailable with torch's own words.
"""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Unavailable

REFUSALS = ("No available kernel", "No viable backend")


def only(backend: SDPBackend, case: AttentionCase) -> Call:
    """The call on this backend alone. The call raises Unavailable where torch has no such kernel for its inputs.

    The backend is chosen inside the call, because torch keeps the choice in global state and the baseline runs between
    two calls. That costs some microseconds of Python, which the shortest cases show.
    """

    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(
                q_BHTD, k_BGTD, v_BGTD, is_causal=case.causal, enable_gqa=case.grouped
            )

    def attention_or_reason(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        try:
            return attention(q_BHTD, k_BGTD, v_BGTD)
        except (RuntimeError, UserWarning):  # torch warns, then refuses: where warnings are errors, that comes first
            reason = _refusal(attention, q_BHTD, k_BGTD, v_BGTD)
            if reason is None:
                raise
            device = q_BHTD.device.type
        raise Unavailable(f"torch has no {backend.name} kernel for this case on {device}{reason}")

    return attention_or_reason


def _refusal(attention: Call, *inputs: Tensor) -> str | None:
    """What torch says when it has no kernel (": why", or nothing), or None where the call failed otherwise."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            attention(*inputs)
        except RuntimeError as error:
            if not any(words in str(error) for words in REFUSALS):
                return None
        else:
            return None
    # The warnings alternate between naming a backend and saying what it misses; C++ appends where it was raised.
    said = [str(warning.message).partition(" (Triggered internally")[0].strip() for warning in heard]
    told = [text for text in said if not text.endswith("because:")]
    return f": {told[0]}" if told else ""
