"""Public DeiT and ViT weights from a file of safetensors, as a network of ``_vit``.

Two schemes of names are known: timm's, which are those of ``_vit``, and Hugging Face's, old and new, where queries,
keys and values are matrices of their own. Sizes follow from the tensors' shapes, the number of heads, which no shape
tells, from ``config.json`` beside the file or from the width. For images of another size the positions are interpolated
as timm does it. What the network has no place for is refused and not left out.

Letters: T tokens, D features.

Source: https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/pos_embed.py (positions);
https://huggingface.co/facebook/deit-tiny-patch16-224
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from archbench.models._data.folder import VARIABLE
from archbench.models._data.hub import ENDPOINT, unreachable
from archbench.models.vit_int4._vit import Size, VisionTransformer

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}  # by width, of the published sizes from tiny to huge
RENAMED = (  # Hugging Face's names, both releases -> ours; q, k and v are joined afterwards
    (r"^(vit|deit)\.", ""),
    (r"^embeddings\.(cls_token)$", r"\1"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(encoder\.layer|layers)\.(\d+)\.", r"blocks.\2."),
    (r"\.attention\.(attention\.query|q_proj)\.", ".attn.q."),
    (r"\.attention\.(attention\.key|k_proj)\.", ".attn.k."),
    (r"\.attention\.(attention\.value|v_proj)\.", ".attn.v."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
)
UNUSED = re.compile(r"pooler\.")  # a layer behind the class token that classifiers do not have
DISTILLED = ("dist_token", "embeddings.distillation_token")


def pretrained(
    where: str | Path, *, image: int | None = None, classes: int | None = None, heads: int | None = None
) -> VisionTransformer:
    """The network of a file, a folder with ``model.safetensors``, or a name such as ``facebook/deit-tiny-patch16-224``.

    ``image``: pixels of a side, where the network shall see others than it was trained on. ``classes``: where it is not
    the file's number, the last layer is drawn anew. ``heads``: where neither ``config.json`` nor a published width
    tells. Raises FileNotFoundError with what to do, and ValueError for weights of another network.
    """
    file = located(where)
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no file of safetensors, or a part of one ({error})") from error
    config = _config(file)
    tensors, names = _ours(stored, file)
    size = _size(tensors, names, file, image, classes, heads or config.get("num_attention_heads"))
    model = VisionTransformer(size)
    wanted = model.state_dict()
    if classes not in (None, _rows(tensors.get("head.weight"))):
        tensors |= {name: wanted[name] for name in ("head.weight", "head.bias")}
    tensors["pos_embed"] = interpolated(tensors["pos_embed"], size.image // size.patch)
    for name, tensor in wanted.items():
        if name not in tensors:
            raise ValueError(f"{file} lacks {name}, of shape {tuple(tensor.shape)}")
        if tensors[name].shape != tensor.shape:
            told = name if names.get(name, name) == name else f"{name} ({names[name]})"
            raise ValueError(f"{told} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}: {file}")
    if foreign := sorted(names[name] for name in tensors.keys() - wanted.keys()):
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise ValueError(f"{', '.join(foreign[:3])}{more}: no such tensors in this network; {file} is of another")
    model.load_state_dict(tensors)
    return model.eval()


def interpolated(pos_embed: Tensor, side: int) -> Tensor:
    """Positions (1, T, D), the class token's first, for side x side patches: bicubic, smoothed first if fewer."""
    first, rest = pos_embed[:, :1], pos_embed[:, 1:]
    before = math.isqrt(rest.shape[1])
    if before == side:
        return pos_embed
    square = rest.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    other = F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat((first, other.flatten(2).transpose(1, 2)), dim=1)


def located(where: str | Path) -> Path:
    """The file of weights: itself, in a folder, below $ARCHBENCH_DATA, or from the Hub. Raises FileNotFoundError."""
    given = Path(where).expanduser()
    places = [given]
    if os.environ.get(VARIABLE):
        places.append(Path(os.environ[VARIABLE]).expanduser() / given.name)
    for place in places:
        for file in (place, place / WEIGHTS, place.with_name(f"{place.name}.safetensors")):
            if file.is_file():
                return file
    by_hand = f"give a file of safetensors, or put {CONFIG} and {WEIGHTS} into ${VARIABLE}/{given.name}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(where)):
        raise FileNotFoundError(f"no weights at {where}: {by_hand}")
    return _fetched(str(where), by_hand) / WEIGHTS


def _fetched(repository: str, by_hand: str) -> Path:
    if reason := unreachable():
        raise FileNotFoundError(f"{reason}; {by_hand} (from {ENDPOINT}/{repository})")
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} needs the package huggingface_hub to be fetched; or {by_hand}"
        ) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=[CONFIG, WEIGHTS]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(f"the Hub gives no {repository} ({first}): {by_hand}") from error


def _config(file: Path) -> dict[str, Any]:
    """What lies beside the weights, where something does."""
    beside = file.with_name(CONFIG)
    if not beside.is_file():
        return {}
    found: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
    if found.get("hidden_act", "gelu") != "gelu":
        raise ValueError(f"{beside}: hidden_act {found['hidden_act']!r}; this network has gelu")
    return found


def _ours(stored: dict[str, Tensor], file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors in float32 by our names, and for each what it is called in the file."""
    if any(name.endswith(DISTILLED) for name in stored):
        raise ValueError(f"{file} is a distilled DeiT, with a second token and head; take the one that is not")
    names = {_renamed(name): name for name in stored if not UNUSED.search(name)}
    tensors = {ours: stored[name].float() for ours, name in names.items()}
    for query in [name for name in tensors if re.search(r"\.attn\.q\.", name)]:
        three = [query.replace(".attn.q.", f".attn.{which}.") for which in "qkv"]
        if missing := [name for name in three if name not in tensors]:
            raise ValueError(f"{file} has {names[query]} but lacks {' and '.join(missing)}")
        joined = query.replace(".attn.q.", ".attn.qkv.")
        parts, told = [tensors.pop(name) for name in three], [names.pop(name) for name in three]
        if len({part.shape for part in parts}) > 1:
            raise ValueError(f"{', '.join(told)} have shapes {', '.join(str(tuple(p.shape)) for p in parts)}: {file}")
        tensors[joined], names[joined] = torch.cat(parts), ", ".join(told)
    return tensors, names


def _renamed(name: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def _size(
    tensors: dict[str, Tensor],
    names: dict[str, str],
    file: Path,
    image: int | None,
    classes: int | None,
    heads: int | None,
) -> Size:
    for name, dimensions in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        if name not in tensors:
            raise ValueError(f"{file} lacks {name}: known are timm's names and Hugging Face's of ViT and DeiT")
        if tensors[name].dim() != dimensions:
            shape = tuple(tensors[name].shape)
            raise ValueError(f"{names[name]} has shape {shape}, expected {dimensions} dimensions: {file}")
    dim, channels, patch, _ = tensors["patch_embed.proj.weight"].shape
    patches = tensors["pos_embed"].shape[1] - 1
    if math.isqrt(patches) ** 2 != patches:
        raise ValueError(
            f"{names['pos_embed']} has shape {tuple(tensors['pos_embed'].shape)}, expected a class token and a square "
            f"of patches: {file}"
        )
    heads = heads or HEADS.get(dim)
    if heads is None or dim % heads:
        raise ValueError(
            f"heads {heads}: no {CONFIG} beside {file} tells them, and {dim} is no published width: give heads="
            if heads is None
            else f"heads {heads}: must divide the {dim} features of {file}"
        )
    image = image or math.isqrt(patches) * patch
    if image % patch:
        raise ValueError(f"image {image}: must be a multiple of the {patch} pixels of a patch")
    classes = classes or _rows(tensors.get("head.weight"))
    if classes is None:
        raise ValueError(f"{file} has no last layer: give classes=")
    blocks = {int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name))}
    return Size(image, patch, dim, 1 + max(blocks, default=-1), heads, classes, channels)


def _rows(weight: Tensor | None) -> int | None:
    return weight.shape[0] if weight is not None and weight.dim() else None
