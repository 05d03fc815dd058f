"""Exported networks: what the file holds, and that its operators give the answers of the network it was made of.

The oracle is ONNX's own reference evaluator, which knows none of ONNX Runtime's optimisers.
"""

from __future__ import annotations

from collections import Counter

import pytest

torch = pytest.importorskip("torch", reason="what is exported is a network in torch")
onnx = pytest.importorskip("onnx", reason="graphs are written with onnx")

from onnx import TensorProto, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch import Tensor  # noqa: E402

from archbench.models.train import seeded  # noqa: E402
from archbench.models.vit_int4._export import export  # noqa: E402
from archbench.models.vit_int4._layers import QuantLinear, calibrate, quantised  # noqa: E402
from archbench.models.vit_int4._plan import Bits, Plan  # noqa: E402
from archbench.models.vit_int4._vit import Size, VisionTransformer  # noqa: E402

TINY = Size(image=32, patch=8, dim=32, depth=2, heads=2, classes=10)
FORMS = ("int4", "int4_direct", "qcdq")
PLANS = {
    "float": Plan(),
    "w4a4": Plan(Bits(4, 4), Bits(8, 8)),
    "w4a8": Plan(Bits(4, 8), Bits(8, 8), ranges="rows"),
    "w8a8": Plan(Bits(8, 8), Bits(8, 8), ranges="minmax"),
    "w4a4 throughout": Plan(Bits(4, 4), Bits(4, 4), 4, 4),
    "attention in 8": Plan(Bits(4, 4), Bits(), 8),
    "w4 in groups": Plan(Bits(4, 32, 32), Bits(8, 8)),
    "w4 in groups, a8": Plan(Bits(4, 8, 16), Bits(8, 8)),
    "w4, float edges": Plan(Bits(4, 32)),
}


def images(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def network(size: Size = TINY) -> VisionTransformer:
    """A float network with no parameter at nought or one."""
    with seeded(0), torch.no_grad():
        model = VisionTransformer(size).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) if parameter.dim() == 1 else 0)
    return model


@pytest.fixture(scope="module")
def made() -> dict[str, VisionTransformer]:
    """A calibrated network of each plan."""
    found = {}
    for name, plan in PLANS.items():
        found[name] = quantised(network(), plan).eval()
        calibrate(found[name], images(8, 2))
    return found


def answers(model: onnx.ModelProto, x: Tensor) -> Tensor:
    (logits,) = ReferenceEvaluator(model).run(None, {"images": x.numpy()})
    return torch.from_numpy(logits)


def tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("plan", PLANS)
def test_a_graph_answers_as_its_network(made: dict[str, VisionTransformer], plan: str, form: str) -> None:
    x = images(12)
    graph = export(made[plan], form)
    onnx.checker.check_model(graph, full_check=True)
    with torch.no_grad():
        wanted = made[plan](x)
    apart = (answers(graph, x) - wanted).norm(dim=1) / wanted.norm(dim=1)
    # A value at the border of two levels may fall to the other side: few images have one, and it does not carry far.
    assert apart.median() < 1e-5
    assert apart.max() < (1e-5 if plan in ("float", "w4, float edges") else 0.5)


def test_the_networks_differ(made: dict[str, VisionTransformer]) -> None:
    x = images(12)
    with torch.no_grad():
        wanted = made["float"](x)
        apart = {name: float((model(x) - wanted).norm() / wanted.norm()) for name, model in made.items()}
    assert min(value for name, value in apart.items() if name != "float") > 1e-3, apart


def test_a_batch_has_any_size(made: dict[str, VisionTransformer]) -> None:
    graph, x = export(made["w4 in groups"]), images(5)
    apart = torch.cat([answers(graph, x[:1]), answers(graph, x[1:])]) - answers(graph, x)
    assert apart.norm() < 0.1 * answers(graph, x).norm()


def test_weights_are_stored_in_four_bits_two_to_a_byte(made: dict[str, VisionTransformer]) -> None:
    model = made["w4a4"]
    graph = export(model)
    stored = tensors(graph)
    weight = stored["blocks.1.mlp.fc1.weight"]
    assert (weight.data_type, list(weight.dims)) == (TensorProto.INT4, [32, 128])
    assert len(weight.raw_data) == 32 * 128 // 2
    layer = model.blocks[1].mlp.fc1
    assert isinstance(layer, QuantLinear)
    assert layer.weights is not None
    levels = torch.from_numpy(numpy_helper.to_array(weight).astype("float32"))
    scale = torch.from_numpy(numpy_helper.to_array(stored["blocks.1.mlp.fc1.weight.scale"]).copy())
    assert torch.equal(levels * scale, layer.weights(layer.weight).detach().T)
    assert stored["head.weight"].data_type == TensorProto.INT8
    assert Counter(t.data_type for t in stored.values())[TensorProto.INT4] == 8


def test_an_odd_number_of_weights_is_filled_up() -> None:
    odd = Size(image=30, patch=6, dim=15, depth=1, heads=3, classes=7, channels=1)
    model = quantised(network(odd), Plan(Bits(4, 8), Bits(4, 8))).eval()
    x = torch.randn(4, 1, 30, 30, generator=torch.Generator().manual_seed(0))
    calibrate(model, x)
    graph = export(model)
    assert len(tensors(graph)["head.weight"].raw_data) == (7 * 15 + 1) // 2
    with torch.no_grad():
        assert float((answers(graph, x) - model(x)).norm(dim=1).median() / model(x).norm()) < 1e-5


def test_only_standard_operators_of_opset_21(made: dict[str, VisionTransformer]) -> None:
    for form in FORMS:
        graph = export(made["w4a4 throughout"], form)
        assert [(opset.domain, opset.version) for opset in graph.opset_import] == [("", 21)]
        assert {node.domain for node in graph.graph.node} == {""}


def test_the_direct_form_has_nothing_between_four_bits_and_numbers(made: dict[str, VisionTransformer]) -> None:
    graph = export(made["w4a4 throughout"], "int4_direct")
    used = Counter(node.op_type for node in graph.graph.node)
    assert used["Cast"] == used["Clip"] == 0
    assert tensors(graph)["level_0_of_4_bits"].data_type == TensorProto.UINT4
    clipped = Counter(node.op_type for node in export(made["w4a4 throughout"], "qcdq").graph.node)
    assert clipped["Clip"] == clipped["QuantizeLinear"] == used["QuantizeLinear"]


@pytest.mark.parametrize(("dim", "depth"), [(96, 4), (128, 6)])
def test_a_file_is_at_most_a_sixth_of_the_float_ones(dim: int, depth: int) -> None:
    model = network(Size(32, 8, dim, depth, 2, 10))
    rounded = quantised(model, Plan(Bits(4, 4), Bits(8, 8), ranges="rows"))
    whole, packed, clipped = (
        export(each, form).ByteSize()
        for each, form in ((model, "int4"), (rounded, "int4"), (rounded, "qcdq"))
    )  # fmt: skip
    assert 6 * packed <= whole
    assert packed < clipped < whole / 3
