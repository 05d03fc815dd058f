"""Builders of stored data sets for tests: Parquet files and image folders of random images."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

NOBODY_LISTENS = "http://127.0.0.1:9"


def only_source(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder the only place data comes from: no Hub, no data of the machine."""
    folder.mkdir()
    monkeypatch.setenv("ARCHBENCH_DATA", str(folder))
    monkeypatch.setenv("HF_ENDPOINT", NOBODY_LISTENS)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    return folder


def pixels(seed: int, side: int = 12, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return values if channels == 3 else values[..., 0]


def file_bytes(values: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Any,
    names: list[str] | None = None,
    image: str = "image",
    label: str = "label",
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    structs = pa.array(
        [{"bytes": value, "path": None} for value in images],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table({image: structs, label: labels})
    if names is not None:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def write_folder(folder: Path, count: int, kinds: Sequence[str] = ("ant", "bee"), kind: str = "PNG") -> list[Path]:
    paths = []
    for row in range(count):
        path = folder / kinds[row % len(kinds)] / f"{row:04}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file_bytes(pixels(row), kind))
        paths.append(path)
    return paths
