"""What a method leads to: a finished network where it runs, and whether it answers there as it did before.

Two programs that compute the same network in float32 differ in the last digits, and a value that lies on the border of
two levels may be rounded to one by the first and to the other by the second. A level more or less is a whole step: it
shifts what follows, and there other values cross their borders. How far that carries depends on the network, so the
network is asked: its own quantisers are disturbed by ten times what float32 sums differ, several times, and no image
may differ by more than a few times what the worst of them did. Where nothing is near a border, nothing is allowed.

Letters: N images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
DISTURBANCE = 1e-5  # of a quantiser's range; sums of this length differ by a tenth of it
DRAWS, FACTOR = 4, 3.0  # disturbed answers, and how many times the worst of them is allowed


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
            logits: Tensor = self.model(images_NCHW)
        return logits

    @torch.no_grad()
    def judge(self, model: nn.Module, images_NCHW: Tensor, outputs: Any) -> float:
        """The relative error of logits, against those of ``model``, whose rounding is simulated. Raises Wrong."""
        wanted: Tensor = model(images_NCHW)
        like(outputs, wanted, "logits")
        if outputs.shape != wanted.shape:
            raise Wrong(f"logits are {tuple(outputs.shape)}, expected {tuple(wanted.shape)}")
        allowed = ROUNDING * wanted.norm(dim=1) + FACTOR * spread(model, images_NCHW, wanted)
        apart = (outputs - wanted).norm(dim=1)
        for image in (~(apart <= allowed)).nonzero().flatten().tolist():
            raise Wrong(
                f"the logits of image {image} differ by {apart[image]:.3g} from those of the network with simulated "
                f"rounding, {wanted[image].norm():.3g} long; rounding to the other side explains {allowed[image]:.3g}"
            )
        return float((outputs - wanted).norm() / wanted.norm())


def spread(model: nn.Module, images_NCHW: Tensor, wanted: Tensor) -> float:
    """How far an image's logits move where quantisers round values at their borders to the other side."""
    if not any(True for _ in quantisers(model)):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    with disturbed(model, generator):
        return max(float((model(images_NCHW) - wanted).norm(dim=1).max()) for _ in range(DRAWS))


@contextmanager
def disturbed(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Quantisers see their inputs with a little noise."""

    def disturb(quantiser: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        assert isinstance(quantiser, ActivationQuantiser)
        (x,) = inputs
        noise = torch.randn(x.shape, generator=generator).to(x)
        return (x + noise * (DISTURBANCE * quantiser.high * quantiser.step),)

    with ExitStack() as stack:
        for quantiser in quantisers(model):
            stack.callback(quantiser.register_forward_pre_hook(disturb).remove)
        yield
