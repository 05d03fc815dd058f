"""A Vision Transformer in the forms it is exported in, timed in pairs with the float network's graph, and their sizes.

All graphs take turns in random order in one process; what is printed is the median time, the median ratio to the float
graph of the same round, and the file's size. The float graph takes part twice: the second says how far ratios can be
trusted. Networks are as they start and images are noise: times do not depend on either. Run by hand, it is no part of
the test suite:

    python tests/vit_int4_forms.py --dim 128 --depth 6 --patch 8 --image 32 --batch 32 --threads 1
    python tests/vit_int4_forms.py --dim 192 --depth 12 --patch 16 --image 224 --batch 1 --threads 1
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median
from typing import get_args

import torch

from archbench.models.vit_int4._export import Form, export
from archbench.models.vit_int4._layers import calibrate, quantised
from archbench.models.vit_int4._plan import FLOAT, Bits, Plan
from archbench.models.vit_int4._session import Session
from archbench.models.vit_int4._vit import Size, VisionTransformer

BASE = "float32"


def graphs(size: Size) -> dict[str, tuple[VisionTransformer, Form]]:
    """By title: a network, and the form it is exported in."""
    model = VisionTransformer(size).eval()
    sample = torch.randn(2, size.channels, size.image, size.image)

    def rounded(blocks: Bits, attention: int = FLOAT) -> VisionTransformer:
        found = quantised(model, Plan(blocks, Bits(8, 8), attention, ranges="minmax")).eval()
        calibrate(found, sample)
        return found

    w4a4 = rounded(Bits(4, 4))
    return {
        BASE: (model, "int4"),
        **{f"W4A4, {form}": (w4a4, form) for form in get_args(Form)},
        "W4A4, attention in 4 bits": (rounded(Bits(4, 4), 4), "int4"),
        "W8A8": (rounded(Bits(8, 8)), "int4"),
        "W4 in groups of 32": (rounded(Bits(4, FLOAT, 32)), "int4"),
        "float32 again": (model, "int4"),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("dim", 128), ("depth", 6), ("patch", 8), ("image", 32), ("classes", 10), ("batch", 1)):
        options.add_argument(f"--{name}", type=int, default=value)
    options.add_argument("--threads", type=int, help="of a session; default: every core")
    options.add_argument("--rounds", type=int, default=15)
    asked = options.parse_args()
    torch.set_num_threads(1)
    heads = max(1, asked.dim // 64)
    size = Size(asked.image, asked.patch, asked.dim, asked.depth, heads, asked.classes)
    written = {title: export(model, form) for title, (model, form) in graphs(size).items()}
    sessions = {title: Session(graph, asked.threads) for title, graph in written.items()}
    images = torch.randn(asked.batch, size.channels, size.image, size.image)
    seconds: dict[str, list[float]] = {title: [] for title in sessions}
    for number in range(asked.rounds + 1):
        for title in random.sample(list(sessions), len(sessions)):
            began = time.perf_counter()
            sessions[title](images)
            if number:  # the first is not counted: memory is new
                seconds[title].append(time.perf_counter() - began)
    for title, times in seconds.items():
        ratio = median(a / b for a, b in zip(times, seconds[BASE], strict=True))
        size_bytes = written[title].ByteSize()
        share = written[BASE].ByteSize() / size_bytes
        print(f"{title:28} {1e3 * median(times):9.3f} ms  {ratio:5.2f}x  {size_bytes:10,} B  1 / {share:.1f}")


if __name__ == "__main__":
    main()
