"""What a method leads to: a finished network where it runs, and whether it answers there as it did before.

Two programs that compute the same network in float32 differ in the last digits, and a value that lies on the border of
two levels may be rounded to one by the first and to the other by the second. A level more or less is a whole step: it
shifts what follows, and there other values cross their borders. How often and how far that happens depends on the
network, so the network is asked: its own quantisers are disturbed by ten times what two float32 programs differ by, and
no more images may leave their answers than do so then; by a hundred times, and none may go farther than goes the
farthest then. Where nothing is rounded, nothing but the last digits may differ.

Letters: N images.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from archbench.checks import Wrong, like
from archbench.models.vit_int4._export import export
from archbench.models.vit_int4._layers import quantisers
from archbench.models.vit_int4._method import Runtime
from archbench.models.vit_int4._quantiser import ActivationQuantiser
from archbench.models.vit_int4._session import Session
from archbench.models.vit_int4._vit import VisionTransformer

ROUNDING = 1e-4  # of an image's logits: float32 sums in another order
DIFFERENCE = 1e-7  # of a quantiser's range: between what two float32 programs hand to it, measured
OFTEN, FAR = 10 * DIFFERENCE, 100 * DIFFERENCE  # disturbances
DRAWS = 4  # of each
FACTOR, FEW = 2.0, 3  # times the farthest of them; images that may leave in any case


class Deployed:
    """Images (N, C, H, W) -> logits (N, classes). ``file_bytes``: of the exported model; 0: it is not exported."""

    def __init__(self, model: nn.Module, runtime: Runtime, threads: int | None = None) -> None:
        self.model, self.file_bytes = model, 0
        self.session: Session | None = None
        if runtime == "onnx":
            if not isinstance(model, VisionTransformer):
                raise TypeError(f"a {type(model).__name__}: what is exported is a VisionTransformer")
            exported = export(model)
            self.file_bytes = exported.ByteSize()
            self.session = Session(exported, threads)

    def __call__(self, images_NCHW: Tensor) -> Tensor:
        if self.session is not None:
            return self.session(images_NCHW)
        with torch.inference_mode():
            logits: Tensor = self.model.to(images_NCHW.device)(images_NCHW)
        return logits

    @torch.no_grad()
    def judge(self, model: nn.Module, images_NCHW: Tensor, outputs: Any) -> float:
        """The relative error of logits, against those of ``model``, whose rounding is simulated. Raises Wrong.

        Of the image in the middle: those that have a value at a border say nothing about how right the sums are.
        """
        model = model.to(images_NCHW.device)
        wanted: Tensor = model(images_NCHW)
        like(outputs, wanted, "logits")
        if outputs.shape != wanted.shape:
            raise Wrong(f"logits are {tuple(outputs.shape)}, expected {tuple(wanted.shape)}")
        apart_N, length_N = (outputs - wanted).norm(dim=1), wanted.norm(dim=1)
        allowed_N = ROUNDING * length_N
        rounds = any(True for _ in quantisers(model))
        if rounds:
            allowed_N = allowed_N + FACTOR * disturbed(model, images_NCHW, wanted, FAR).max()
            left = int((apart_N > ROUNDING * length_N).sum())
            often = disturbed(model, images_NCHW, wanted, OFTEN)
            share = float((often > ROUNDING * length_N).float().mean())
            if left > FEW + share * len(images_NCHW):
                raise Wrong(
                    f"the logits of {left} of {len(images_NCHW)} images are not those of the network with simulated "
                    f"rounding; values at borders explain {share:.0%}"
                )
        worst = int((apart_N / allowed_N).nan_to_num(nan=torch.inf).argmax())
        if not apart_N[worst] <= allowed_N[worst]:
            raise Wrong(
                f"the logits of image {worst}, {length_N[worst]:.3g} long, differ by {apart_N[worst]:.3g} from "
                f"those of the network with simulated rounding; values at borders explain {allowed_N[worst]:.3g}"
            )
        # Where many values lie at borders every image may leave; then, in the middle, not farther than with the noise.
        if rounds:
            middle, bound = float(apart_N.median()), float(FACTOR * often.median() + ROUNDING * length_N.median())
            if not middle <= bound:
                raise Wrong(
                    f"the logits of the image in the middle differ by {middle:.3g} from those of the network with "
                    f"simulated rounding; values at borders explain {bound:.3g}"
                )
        return float((apart_N / length_N).median())


def disturbed(model: nn.Module, images_NCHW: Tensor, wanted: Tensor, size: float) -> Tensor:
    """How far logits move, (DRAWS, N), where quantisers see their inputs with noise of ``size`` times their range."""
    generator = torch.Generator().manual_seed(0)

    def disturb(quantiser: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        assert isinstance(quantiser, ActivationQuantiser)
        (x,) = inputs
        noise = torch.randn(x.shape, generator=generator).to(x)
        return (x + noise * (size * quantiser.high * quantiser.step),)

    with ExitStack() as stack:
        for quantiser in quantisers(model):
            stack.callback(quantiser.register_forward_pre_hook(disturb).remove)
        return torch.stack([(model(images_NCHW) - wanted).norm(dim=1) for _ in range(DRAWS)])
