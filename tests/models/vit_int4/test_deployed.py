"""A deployed network is judged by the network it was made of: right answers pass, nearly right ones do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="what is deployed is a network in torch")
pytest.importorskip("onnx", reason="graphs are written with onnx")
pytest.importorskip("onnxruntime", reason="graphs run in ONNX Runtime")

from torch import Tensor, nn  # noqa: E402

from archbench.checks import Wrong  # noqa: E402
from archbench.models.train import seeded  # noqa: E402
from archbench.models.vit_int4._deployed import Deployed  # noqa: E402
from archbench.models.vit_int4._export import export  # noqa: E402
from archbench.models.vit_int4._layers import calibrate, quantised  # noqa: E402
from archbench.models.vit_int4._plan import Bits, Plan  # noqa: E402
from archbench.models.vit_int4._vit import Size, VisionTransformer  # noqa: E402

PLANS = {
    "float": Plan(),
    "w4": Plan(Bits(4, 32, 32)),
    "w4a4": Plan(Bits(4, 4), Bits(8, 8)),
    "w8a8": Plan(Bits(8, 8), Bits(8, 8)),
}


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def made() -> dict[str, VisionTransformer]:
    found = {}
    for name, plan in PLANS.items():
        with seeded(0):
            found[name] = quantised(VisionTransformer(Size(32, 8, 32, 2, 2, 10)), plan).eval()
        calibrate(found[name], images(8, 2))
    return found


def noisy(logits: Tensor, share: float) -> Tensor:
    noise = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
    return logits + share * logits.norm(dim=1, keepdim=True) * noise / noise.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("count", [1, 5, 32])
def test_what_onnx_runtime_answers_is_right(made: dict[str, VisionTransformer], plan: str, count: int) -> None:
    deployed = Deployed(made[plan], "onnx", 1)
    for seed in range(3):
        x = images(count, seed)
        error = deployed.judge(made[plan], x, deployed(x))
        assert 0 <= error < (0.5 if count == 1 else 1e-5)
    assert deployed.file_bytes == export(made[plan]).ByteSize()


def test_a_network_may_run_where_it_is(made: dict[str, VisionTransformer]) -> None:
    deployed = Deployed(made["w4a4"], "torch")
    x = images(4)
    assert deployed.file_bytes == 0
    assert deployed.judge(made["w4a4"], x, deployed(x)) == 0


WRONG: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "two images changed places": (r"of image \d+", lambda y: y[[1, 0, *range(2, len(y))]]),
    "one logit of one image": ("of image 3", lambda y: y + 5 * nn.functional.one_hot(torch.tensor(3), len(y))[:, None]),
    "no number": ("of image 2", lambda y: y.clone().index_fill_(0, torch.tensor(2), torch.nan)),
    "a class is missing": ("logits are", lambda y: y[:, :-1]),
    "another precision": ("another precision", lambda y: y.double()),
    "a little, everywhere": ("of 32 images", lambda y: noisy(y, 0.002)),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_answers_of_a_rounded_network_are_refused(made: dict[str, VisionTransformer], what: str) -> None:
    reason, spoil = WRONG[what]
    deployed, x = Deployed(made["w4a4"], "onnx", 1), images(32)
    with pytest.raises(Wrong, match=reason):
        deployed.judge(made["w4a4"], x, spoil(deployed(x)))


def test_where_nothing_is_rounded_only_the_last_digits_may_differ(made: dict[str, VisionTransformer]) -> None:
    deployed, x = Deployed(made["w4"], "onnx", 1), images(4)
    assert deployed.judge(made["w4"], x, noisy(deployed(x), 5e-5)) > 0
    with pytest.raises(Wrong, match="values at borders explain"):
        deployed.judge(made["w4"], x, noisy(deployed(x), 2e-4))


def test_answers_of_another_rounding_are_refused(made: dict[str, VisionTransformer]) -> None:
    x = images(32)
    with pytest.raises(Wrong, match=r"of (32 images|image)"), torch.no_grad():
        Deployed(made["w4a4"], "onnx", 1).judge(made["w4a4"], x, made["float"](x))


def test_only_a_network_of_the_track_is_exported() -> None:
    with pytest.raises(TypeError, match="a Flatten: what is exported is a VisionTransformer"):
        Deployed(nn.Flatten(), "onnx")
