"""scaled_dot_product_attention held to one backend, and why a backend has no kernel for a case."""

from __future__ import annotations

import warnings

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from archbench.kernels.attention import AttentionCase
from archbench.track import Call, Unavailable

HALF = ("bf16", "fp16")


def only(backend: SDPBackend, case: AttentionCase) -> Call:
    """The call on this backend alone. The call raises Unavailable where torch has no such kernel for its inputs.

    The backend is chosen inside the call, because torch keeps the choice in global state and the baseline runs between
    two calls. That costs some microseconds of Python, which the shortest cases show.
    """

    def attention(q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        try:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(
                    q_BHTD, k_BGTD, v_BGTD, is_causal=case.causal, enable_gqa=case.grouped
                )
        except (RuntimeError, UserWarning) as error:
            if isinstance(error, RuntimeError) and "No available kernel" not in str(error):
                raise
            raise Unavailable(_reason(backend, case, q_BHTD, k_BGTD, v_BGTD)) from error

    return attention


def _reason(backend: SDPBackend, case: AttentionCase, *inputs: Tensor) -> str:
    """Torch explains a refusal in warnings: ask once more and listen."""
    sentence = f"torch has no {backend.name} kernel for this case on {inputs[0].device.type}"
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(*inputs, is_causal=case.causal, enable_gqa=case.grouped)
        except RuntimeError:
            pass
    # The first warnings name the backend that was asked for and what it wants; C++ appends the place it was raised at.
    said = [str(warning.message).partition(" (Triggered internally")[0].strip() for warning in heard]
    told = [text for text in said if not text.endswith("because:")]
    return f"{sentence}: {told[0]}" if told else sentence
