"""Run the contender ``liger`` in Triton's interpreter, on CPU: its values, and its gradients.

A program of its own, because the interpreter is chosen when the kernels are imported (TRITON_INTERPRET=1). It asks in
fp32, which the contender refuses for the TF32 of a GPU: the interpreter has none, and half precision rounds too much
to tell a right window from one that is one key short.
"""

from __future__ import annotations

from dataclasses import replace

from archbench.kernels.attention import TRACK, AttentionCase
from archbench.kernels.attention.liger import CONTENDER


def main() -> None:
    for length in (1, 63, 100):
        asked = AttentionCase(batch=2, heads=2, length=length, dtype="fp16", backward=True)
        exact = replace(asked, dtype="fp32")
        inputs = TRACK.make_inputs(exact, 41, "cpu")
        outputs = TRACK.workload(exact, CONTENDER.build(asked))(*inputs)
        print(exact.slug, f"{TRACK.gate(exact, inputs, outputs):.1e}", flush=True)
    print("done")


if __name__ == "__main__":
    main()
