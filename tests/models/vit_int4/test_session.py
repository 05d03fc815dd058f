"""ONNX Runtime runs exported networks as they are meant: its optimisers change how, never what."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="what is exported is a network in torch")
onnx = pytest.importorskip("onnx", reason="graphs are written with onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="graphs run in ONNX Runtime")

from torch import Tensor  # noqa: E402

from archbench.models.train import seeded  # noqa: E402
from archbench.models.vit_int4._export import Form, export  # noqa: E402
from archbench.models.vit_int4._layers import calibrate, quantised  # noqa: E402
from archbench.models.vit_int4._plan import Bits, Plan  # noqa: E402
from archbench.models.vit_int4._session import Session, options_for  # noqa: E402
from archbench.models.vit_int4._vit import Size, VisionTransformer  # noqa: E402

TINY = Size(image=32, patch=8, dim=32, depth=2, heads=2, classes=10)
MATRICES = 2 * 4 + 2  # of the blocks, patches and classes
ROUNDED = {
    "w4a4": Plan(Bits(4, 4), Bits(8, 8)),
    "w8a8": Plan(Bits(8, 8), Bits(8, 8)),
    "w4a4 throughout": Plan(Bits(4, 4), Bits(4, 4), 4, 4),
    "w4 in groups, a8": Plan(Bits(4, 8, 16), Bits(8, 8)),
}
WEIGHTS_ONLY = {"w4 in groups": Plan(Bits(4, 32, 32)), "w4": Plan(Bits(4, 32)), "float": Plan()}


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def made() -> dict[str, VisionTransformer]:
    found = {}
    for name, plan in (ROUNDED | WEIGHTS_ONLY).items():
        with seeded(0):
            found[name] = quantised(VisionTransformer(TINY), plan).eval()
        calibrate(found[name], images(8, 2))
    return found


def apart(model: VisionTransformer, x: Tensor, form: Form = "int4") -> Tensor:
    with torch.no_grad():
        wanted = model(x)
    found: Tensor = (Session(export(model, form), 1)(x) - wanted).norm(dim=1) / wanted.norm(dim=1)
    return found


@pytest.mark.parametrize("form", ["int4", "int4_direct", "qcdq"])
@pytest.mark.parametrize("plan", ROUNDED)
def test_rounded_networks_answer_alike_but_for_values_at_borders(
    made: dict[str, VisionTransformer], plan: str, form: Form
) -> None:
    found = apart(made[plan], images(40), form)
    assert found.median() < 1e-5
    assert found.max() < 0.5


@pytest.mark.parametrize("form", ["int4", "int4_direct", "qcdq"])
@pytest.mark.parametrize("plan", WEIGHTS_ONLY)
def test_activations_are_not_rounded_where_only_weights_are(
    made: dict[str, VisionTransformer], plan: str, form: Form
) -> None:
    assert apart(made[plan], images(8), form).max() < 1e-5


def test_the_runtime_left_alone_rounds_them(made: dict[str, VisionTransformer]) -> None:
    """Why ``options_for`` takes its fusions away: where this fails, they can stay."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    graph, x = export(made["w4 in groups"]), images(8)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": x.numpy()})
    with torch.no_grad():
        wanted = made["w4 in groups"](x)
    assert float((torch.from_numpy(logits) - wanted).norm() / wanted.norm()) > 1e-3


def test_products_of_rounded_operands_run_in_eight_bits(made: dict[str, VisionTransformer], tmp_path: Path) -> None:
    def executed(plan: str) -> Counter[str]:
        graph = export(made[plan])
        options = options_for(graph, 1)
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)

    rounded = executed("w4a4")
    # The classes' product is of one token, and the runtime makes another operator of it first.
    assert rounded["MatMulIntegerToFloat"] == MATRICES - 1
    assert rounded["Cast"] == 0
    grouped = executed("w4 in groups")
    assert grouped["DequantizeLinear"] == grouped["MatMulNBits"] == 0


def test_images_may_lie_anyhow_and_be_any_number(made: dict[str, VisionTransformer]) -> None:
    session = Session(export(made["w4"]), 2)
    x = images(5)
    strided = x.to(memory_format=torch.channels_last)
    assert not strided.is_contiguous()
    wanted = session(x)
    assert (wanted.shape, wanted.dtype) == ((5, 10), torch.float32)
    torch.testing.assert_close(session(strided), wanted)
    torch.testing.assert_close(session(x[2:3]), wanted[2:3], rtol=1e-4, atol=1e-5)
