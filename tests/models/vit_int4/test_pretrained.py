"""Public weights: both schemes of names give the logits of the library that wrote them, and odd files are told."""

# ruff: noqa: E402 - the skip comes before what needs torch
from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="no torch installed")
safetensors = pytest.importorskip("safetensors.torch", reason="no safetensors installed")

from torch import Tensor
from torch.nn import functional as F

from archbench.models.vit_int4 import _pretrained
from archbench.models.vit_int4._layers import calibrate, quantised
from archbench.models.vit_int4._plan import Bits, Plan
from archbench.models.vit_int4._pretrained import interpolated, located, pretrained
from archbench.models.vit_int4._vit import Size, VisionTransformer

SIZE = Size(image=32, patch=8, dim=32, depth=2, heads=2, classes=7)
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def written(folder: Path, tensors: Tensors, heads: int | None = 2) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "model.safetensors")
    if heads:
        (folder / "config.json").write_text(json.dumps({"num_attention_heads": heads, "hidden_act": "gelu"}))
    return folder


def hugging_face() -> Any:
    """A classifier of transformers, with weights that make logits differ."""
    transformers = pytest.importorskip("transformers", reason="no transformers installed")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        num_labels=7,
    )
    torch.manual_seed(2)
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


OLD = {  # a layer's names before transformers 5, which public files have
    "layers.": "encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def old_name(name: str) -> str:
    for new, old in OLD.items():
        name = name.replace(new, old)
    return name


def test_timms_names_are_the_networks_own(network: VisionTransformer, images: Tensor, tmp_path: Path) -> None:
    where = written(tmp_path / "timm", network.state_dict())
    loaded = pretrained(where)
    assert loaded.size == SIZE
    assert not loaded.training
    assert torch.equal(loaded(images), network(images))
    halves = {name: tensor.bfloat16() for name, tensor in network.state_dict().items()}
    assert {p.dtype for p in pretrained(written(tmp_path / "bf16", halves)).parameters()} == {torch.float32}


@pytest.mark.parametrize("names", ["new", "old", "deit", "saved"])
def test_hugging_faces_names_give_its_logits(names: str, images: Tensor, tmp_path: Path) -> None:
    theirs = hugging_face()
    rename: dict[str, Callable[[str], str]] = {
        "new": str,
        "old": old_name,
        "deit": lambda name: old_name(name).replace("vit.", "deit."),
    }
    where = tmp_path / "hf"
    if names == "saved":
        theirs.save_pretrained(where)
    else:
        written(where, {rename[names](name): tensor for name, tensor in theirs.state_dict().items()})
    stored = safetensors.load_file(where / "model.safetensors")
    assert any("encoder.layer.1.attention.attention.query" in name for name in stored) or names in ("new", "saved")
    with torch.no_grad():
        want, got = theirs(images).logits, pretrained(where)(images)
    assert want.std() > 0.1
    assert torch.allclose(got, want, atol=1e-5)
    heads = pretrained(where, heads=4)
    assert not torch.allclose(heads(images), want, atol=1e-2), "the number of heads is no detail"


def test_a_pooler_is_not_needed_and_a_head_may_be_missing(images: Tensor, tmp_path: Path) -> None:
    theirs = hugging_face()
    bare = {name.removeprefix("vit."): t for name, t in theirs.state_dict().items() if "classifier" not in name}
    bare["pooler.dense.weight"], bare["pooler.dense.bias"] = torch.zeros(32, 32), torch.zeros(32)
    where = written(tmp_path / "bare", bare)
    with pytest.raises(ValueError, match=r"has no last layer: give classes="):
        pretrained(where)
    assert pretrained(where, classes=5)(images).shape == (3, 5)


def test_a_head_of_other_classes_is_drawn_anew(network: VisionTransformer, images: Tensor, tmp_path: Path) -> None:
    where = written(tmp_path / "timm", network.state_dict())
    assert torch.equal(pretrained(where, classes=7)(images), network(images)), "seven are there"
    other = pretrained(where, classes=4)
    assert other(images).shape == (3, 4)
    assert torch.equal(other.blocks[1].mlp.fc2.weight, network.blocks[1].mlp.fc2.weight)
    assert network.head.bias.any()
    assert not other.head.bias.any(), "as before training"


def test_positions_are_interpolated_for_other_images(network: VisionTransformer, tmp_path: Path) -> None:
    where = written(tmp_path / "timm", network.state_dict())
    positions = network.pos_embed.detach()
    for image in (16, 48):
        side = image // 8
        loaded = pretrained(where, image=image)
        assert loaded.size.image == image
        square = positions[:, 1:].reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
        want = F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)
        assert torch.equal(loaded.pos_embed[0, 1:], want[0].permute(1, 2, 0).reshape(side * side, 32))
        assert torch.equal(loaded.pos_embed[:, 0], positions[:, 0])
        assert loaded(torch.zeros(1, 3, image, image)).shape == (1, 7)
    assert interpolated(positions, 4) is positions
    rows = torch.arange(4.0).repeat_interleave(4).view(1, 16, 1)
    finer = interpolated(torch.cat((torch.zeros(1, 1, 1), rows), dim=1), 8)[0, 1:, 0].view(8, 8)
    assert (finer.diff(dim=0)[2:5] > 0).all(), "rows stay rows"
    assert torch.allclose(finer, finer[:, :1].expand(8, 8), atol=1e-6)
    with pytest.raises(ValueError, match="image 30: must be a multiple of the 8 pixels of a patch"):
        pretrained(where, image=30)


def test_a_method_rounds_them(network: VisionTransformer, images: Tensor, tmp_path: Path) -> None:
    where = written(tmp_path / "timm", network.state_dict())
    rounded = quantised(pretrained(where), Plan(Bits(8, 8), Bits(8, 8)))
    calibrate(rounded, images)
    off = (rounded(images) - network(images)).norm() / network(images).norm()
    assert 1e-4 < off < 0.2


def without(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def with_(**more: Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("blocks.1.norm2.bias"), r"lacks blocks\.1\.norm2\.bias, of shape \(32,\)"),
        (without("pos_embed"), r"lacks pos_embed: known are timm's names and Hugging Face's"),
        (without("head.weight", "head.bias"), r"has no last layer: give classes="),
        (with_(head__weight=torch.ones(7, 31)), r"head\.weight has shape \(7, 31\), expected \(7, 32\)"),
        (
            with_(blocks__0__mlp__fc1__weight=torch.ones(96, 32)),
            r"fc1\.weight has shape \(96, 32\), expected \(128, 32\)",
        ),
        (with_(pos_embed=torch.ones(1, 16, 32)), r"pos_embed has shape \(1, 16, 32\), expected a class token and a sq"),
        (with_(pos_embed=torch.ones(17, 32)), r"pos_embed has shape \(17, 32\), expected 3 dimensions"),
        (with_(pos_embed=torch.ones(1, 17, 30)), r"pos_embed has shape \(1, 17, 30\), expected \(1, 17, 32\)"),
        (
            with_(patch_embed__proj__weight=torch.ones(32, 3, 8, 4)),
            r"has shape \(32, 3, 8, 4\), expected \(32, 3, 8, 8\)",
        ),
        (with_(dist_token=torch.ones(1, 1, 32)), r"is a distilled DeiT, with a second token and head"),
        (with_(reg_token=torch.ones(1, 4, 32)), r"reg_token: no such tensors in this network"),
        (
            with_(**{f"blocks__0__ls{i}__gamma": torch.ones(32) for i in range(5)}),
            r"blocks\.0\.ls0\.gamma, .*ls1\.gamma, .*ls2\.gamma and 2 more: no such tensors",
        ),
    ],
)
def test_weights_of_another_network_are_told(
    change: Callable[[Tensors], Tensors], said: str, network: VisionTransformer, tmp_path: Path
) -> None:
    where = written(tmp_path / "odd", change(dict(network.state_dict())))
    with pytest.raises(ValueError, match=said):
        pretrained(where)


def test_what_is_told_names_the_files_own_tensors(tmp_path: Path) -> None:
    stored = {old_name(name): tensor for name, tensor in hugging_face().state_dict().items()}
    key = "vit.encoder.layer.1.attention.attention.key.weight"
    where = written(tmp_path / "lacking", without(key)(stored))
    with pytest.raises(
        ValueError, match=r"layer\.1\.attention\.attention\.query\.weight but lacks blocks\.1\.attn\.k\.w"
    ):
        pretrained(where)
    where = written(tmp_path / "uneven", stored | {key: torch.ones(16, 32)})
    with pytest.raises(ValueError, match=r"key\.weight, .* have shapes \(32, 32\), \(16, 32\), \(32, 32\)"):
        pretrained(where)
    where = written(tmp_path / "narrow", stored | {"vit.encoder.layer.0.output.dense.weight": torch.ones(32, 64)})
    with pytest.raises(
        ValueError, match=r"mlp\.fc2\.weight \(vit\.encoder\.layer\.0\.output\.dense\.weight\) has shape"
    ):
        pretrained(where)


def test_heads_must_be_known(network: VisionTransformer, tmp_path: Path) -> None:
    where = written(tmp_path / "timm", network.state_dict(), heads=None)
    with pytest.raises(
        ValueError, match=r"heads None: no config\.json beside .* and 32 is no published width: give heads="
    ):
        pretrained(where)
    assert pretrained(where, heads=2).size == SIZE
    with pytest.raises(ValueError, match="heads 3: must divide the 32 features"):
        pretrained(where, heads=3)
    published = VisionTransformer(Size(16, 8, 192, 1, 3, 5))
    assert pretrained(written(tmp_path / "tiny", published.state_dict(), heads=None)).size == published.size


def test_another_activation_is_refused(network: VisionTransformer, tmp_path: Path) -> None:
    where = written(tmp_path / "timm", network.state_dict())
    (where / "config.json").write_text('{"num_attention_heads": 2, "hidden_act": "quick_gelu"}')
    with pytest.raises(ValueError, match=r"hidden_act 'quick_gelu'; this network has gelu"):
        pretrained(where)


def test_where_weights_are_looked_for(
    network: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = written(tmp_path / "deit-tiny", network.state_dict())
    file = where / "model.safetensors"
    monkeypatch.delenv("ARCHBENCH_DATA", raising=False)
    assert located(where) == located(file) == located(str(where)) == file
    with pytest.raises(FileNotFoundError, match=r"no weights at deit-tiny: .* into \$ARCHBENCH_DATA/deit-tiny"):
        located("deit-tiny")
    monkeypatch.setenv("ARCHBENCH_DATA", str(tmp_path))
    assert located("deit-tiny") == located("facebook/deit-tiny") == file
    alone = tmp_path / "vit.safetensors"
    alone.write_bytes(file.read_bytes()[:-9])
    assert located("vit") == alone
    with pytest.raises(ValueError, match=r"vit\.safetensors is no file of safetensors, or a part of one"):
        pretrained("vit")


def test_the_hub_is_asked_last(network: VisionTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="no huggingface_hub installed")
    monkeypatch.setattr(_pretrained, "unreachable", lambda: "the Hub does not answer")
    with pytest.raises(FileNotFoundError, match=r"does not answer; .*from https://huggingface\.co/facebook/deit-none"):
        located("facebook/deit-none")
    monkeypatch.setattr(_pretrained, "unreachable", lambda: None)
    where = written(tmp_path / "snapshot", network.state_dict())

    def fetched(repository: str, allow_patterns: list[str]) -> str:
        if repository != "facebook/deit-some":
            raise OSError("404: no such repository")
        assert allow_patterns == ["config.json", "model.safetensors"]
        return str(where)

    monkeypatch.setattr(hub, "snapshot_download", fetched)
    assert located("facebook/deit-some") == where / "model.safetensors"
    with pytest.raises(FileNotFoundError, match=r"the Hub gives no facebook/deit-none \(404: no such repository\)"):
        located("facebook/deit-none")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="needs the package huggingface_hub to be fetched; or give a file"):
        located("facebook/deit-some")
