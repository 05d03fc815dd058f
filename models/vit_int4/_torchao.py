"""torchao's quantisation-aware training of an exported graph (PT2E), from the track's layers and back to them.

``torch.export`` writes the network down as a graph of operators; a ``Quantizer`` notes at each matrix product which
operands are rounded to how many bits, and ``prepare_qat_pt2e`` puts torchao's fake quantisers there. Those of
activations start from the range of least squared error on the calibration images, each seeing what the rounded
operators before it give, and learn step and zero point from there; those of weights take each row's largest magnitude
at every update.

torchao's other way, ``QATConfig``, has no range for a whole activation: it finds one for each token at every call, and
the deployed network would have to do that too.

Letters: N images.

Source: https://docs.pytorch.org/ao/stable/pt2e_quantization/pt2e_quant_qat.html
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils import parametrize

from archbench.models.vit_int4._layers import QuantLinear, QuantMix, quantised
from archbench.models.vit_int4._plan import Plan
from archbench.models.vit_int4._quantiser import ActivationQuantiser
from archbench.models.vit_int4._vit import VisionTransformer
from archbench.quiet import quiet_import

with quiet_import():
    from torchao.quantization.pt2e import (
        FakeQuantize,
        HistogramObserver,
        LearnableFakeQuantize,
        MovingAveragePerChannelMinMaxObserver,
        enable_range_learning,
    )
    from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

LINEAR, MATMUL = torch.ops.aten.linear.default, torch.ops.aten.matmul.default
OPERANDS = ("queries", "keys"), ("shares", "values")  # of attention's products, in the order of the graph


class Histogram(HistogramObserver):
    """The range of least squared error, at the levels there are: torchao's own always takes the dtype's, 256."""

    def __init__(self, **choices: Any) -> None:
        super().__init__(**choices)
        self.dst_nbins = self.quant_max - self.quant_min + 1


def activations(bits: int) -> QuantizationSpec:
    return QuantizationSpec(
        torch.uint8,
        LearnableFakeQuantize.with_args(observer=Histogram, use_grad_scaling=True),
        quant_min=0,
        quant_max=2**bits - 1,
        qscheme=torch.per_tensor_affine,
    )


def weights(bits: int) -> QuantizationSpec:
    return QuantizationSpec(
        torch.int8,
        FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0),
        quant_min=-(2 ** (bits - 1)),
        quant_max=2 ** (bits - 1) - 1,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )


class PlanQuantizer(Quantizer):
    """Annotates the products of an exported network as the layers of ``form`` are."""

    def __init__(self, form: VisionTransformer) -> None:
        self.form = form

    def annotate(self, model: GraphModule) -> GraphModule:
        for node, layer in linear_nodes(model, self.form):
            if layer.inputs is not None and layer.weights is not None:
                specs = activations(layer.inputs.bits), weights(layer.weights.bits)
                _annotate(node, *specs)
        for node, *operands in matmul_nodes(model, self.form):
            _annotate(node, *(activations(operand.bits) for operand in operands))
        return model

    def validate(self, model: GraphModule) -> None:
        """Every graph that was annotated is."""


def _annotate(node: Node, *specs: QuantizationSpec) -> None:
    inputs = dict(zip(node.args[:2], specs, strict=True))
    node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=inputs, _annotated=True)


def linear_nodes(graph: GraphModule, form: VisionTransformer) -> list[tuple[Node, QuantLinear]]:
    """The graph's products with weights, and the layers of ``form`` that they are."""
    found = []
    for node in graph.graph.nodes:
        if node.target is LINEAR:
            weight = node.args[1] if node.args[1].op == "get_attr" else node.args[1].args[0]
            found.append((node, form.get_submodule(weight.target.removesuffix(".weight"))))
    return [(node, layer) for node, layer in found if isinstance(layer, QuantLinear)]


def matmul_nodes(graph: GraphModule, form: VisionTransformer) -> list[tuple[Node, Any, Any]]:
    """The graph's products of two activations, and the quantisers of ``form`` that their operands have."""
    mixes = [block.attn.mix for block in form.blocks if isinstance(block.attn.mix, QuantMix)]
    wanted = [[getattr(mix, name) for name in names] for mix in mixes for names in OPERANDS]
    nodes = [node for node in graph.graph.nodes if node.target is MATMUL]
    return [(node, *quantisers) for node, quantisers in zip(nodes, wanted, strict=True)]


class Log(nn.Module):
    """A step kept as its logarithm: torchao learns the step itself, but one rate of learning suits no step of 0.5 and
    one of 0.005, where it could become negative."""

    def forward(self, log: Tensor) -> Tensor:
        return log.exp()

    def right_inverse(self, step: Tensor) -> Tensor:
        return step.log()


class Exported(nn.Module):
    """A graph in training, and the network (in a tuple: no part of what is trained) whose form it comes back to."""

    def __init__(self, graph: GraphModule, form: VisionTransformer) -> None:
        super().__init__()
        self.graph, self.form = graph, (form,)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.graph(images_NCHW)
        return logits

    def train(self, mode: bool = True) -> Exported:
        """An exported graph knows no modes and refuses to be told; this network needs none."""
        self.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Exported:
        with warnings.catch_warnings():  # a graph holds objects of a class that torch itself has deprecated
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            return Exported(copy.deepcopy(self.graph, memo), self.form[0])


def converted(model: VisionTransformer, images_NCHW: Tensor, plan: Plan) -> Exported:
    """The network exported, with torchao's fake quantisers, calibrated on the images."""
    form = quantised(model, plan).to(images_NCHW.device).eval()
    images = {0: torch.export.Dim("images")}
    exported = torch.export.export(_float(form), (images_NCHW[:2],), dynamic_shapes=(images,), strict=True).module()
    graph = prepare_qat_pt2e(exported, PlanQuantizer(form))
    with torch.no_grad():
        graph(images_NCHW)
    graph.apply(enable_range_learning)
    for module in list(graph.modules()):
        if isinstance(module, LearnableFakeQuantize):
            parametrize.register_parametrization(module, "scale", Log())
    return Exported(graph, form)


def _float(form: VisionTransformer) -> VisionTransformer:
    """A copy that rounds nothing."""
    plain = copy.deepcopy(form)
    for module in plain.modules():
        if isinstance(module, QuantLinear):
            module.weights = module.inputs = None
        elif isinstance(module, QuantMix):
            for name in (name for names in OPERANDS for name in names):
                setattr(module, name, nn.Identity())
    return plain


@torch.no_grad()
def finished(model: nn.Module) -> nn.Module:
    """The trained graph's numbers in the layers of the track."""
    assert isinstance(model, Exported)
    graph, form = model.graph, copy.deepcopy(model.form[0])
    form.load_state_dict(graph.state_dict(), strict=False)
    for node, layer in linear_nodes(graph, form):
        if layer.inputs is not None and layer.weights is not None:
            inputs, weight = (graph.get_submodule(arg.target) for arg in node.args[:2])
            layer.weight.copy_(weight(layer.weight))
            layer.weights.log_step.copy_(weight.scale.log())
            _copy_range(inputs, layer.inputs)
    for node, *operands in matmul_nodes(graph, form):
        for arg, operand in zip(node.args, operands, strict=True):
            _copy_range(graph.get_submodule(arg.target), operand)
    return form


def _copy_range(fake: Any, own: ActivationQuantiser) -> None:
    own.log_step.copy_(fake.scale.log().squeeze())
    own.zero.copy_(fake.zero_point.round().clamp(0, own.high).squeeze())
