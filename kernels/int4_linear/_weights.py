"""The matrices of a case: codes, scales, and what they mean as numbers.

Both are drawn from the case alone, so every contender packs the same ones before the clock starts. Scales have 8 bits
of precision and lie within half precision's normal range: no format a contender stores them in changes them.

Letters: N outputs, K inputs, G weights of a group.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from archbench.kernels.int4_linear import Int4Case

ZERO = 8  # the code of a weight of zero


@dataclass(frozen=True)
class Quantised:
    """One matrix: codes (N, K) uint8 from 0 to 15 and scales (N, K / G) float32."""

    codes: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def dense(self) -> npt.NDArray[np.float32]:
        """(N, K): exact, a product of 4 and 8 bits."""
        centred = self.codes.astype(np.float32) - ZERO
        centred.reshape(*self.scales.shape, self.group)[...] *= self.scales[..., None]
        return centred

    def pairs(self) -> npt.NDArray[np.uint8]:
        """(N, K / 2): codes of neighbours in a byte, the first in the low half."""
        packed: npt.NDArray[np.uint8] = self.codes[:, 0::2] | np.left_shift(self.codes[:, 1::2], 4, dtype=np.uint8)
        return packed


def matrices(case: Int4Case) -> list[Quantised]:
    """One for each layer. Scales keep outputs near one for inputs near one."""
    seed = hashlib.blake2b(f"{case.inputs}x{case.outputs}/{case.group}".encode(), digest_size=8).digest()
    random = np.random.default_rng(int.from_bytes(seed, "little"))
    found = []
    for _ in range(case.layers):
        codes = random.integers(0, 16, (case.outputs, case.inputs), dtype=np.uint8)
        spread = np.exp2(random.uniform(-1.0, 1.0, (case.outputs, case.inputs // case.group)))
        found.append(Quantised(codes, short(spread / (4.6 * case.inputs**0.5))))
    return found


def short(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """With 8 bits of precision, as bfloat16 has them, and no smaller than half precision's normal numbers."""
    bits = np.maximum(values, 2.0**-14).astype(np.float32).view(np.uint32)
    return ((bits + 0x8000) & 0xFFFF0000).view(np.float32)
