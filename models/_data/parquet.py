"""Images in Parquet files, as the Hugging Face Hub keeps them.

``datasets`` converts the files once into a memory-mapped Arrow cache, so that any row of a set larger than memory is
one look-up. Columns are found by name; the file is judged by its schema before anything is converted.

Source: https://huggingface.co/docs/datasets/loading#parquet
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from archbench.models._data import BadData, Rows, Where, checked_labels

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
CAPTION_PREFIX = "caption"


def read_files(files: tuple[Path, ...]) -> Any:
    """The ``datasets.Dataset`` of a split kept in Parquet files. Raises BadData."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset
    from datasets.exceptions import DatasetsError

    for file in files:
        try:
            schema = pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            raise BadData(f"{file} is no readable Parquet file: {error}") from None
        columns_of(schema.names, str(file))
    if sum(pq.read_metadata(file).num_rows for file in files) == 0:
        raise BadData(f"{files[0]} holds no rows")
    try:
        return Dataset.from_parquet([str(file) for file in files])
    except (OSError, ValueError, DatasetsError) as error:
        raise BadData(f"{files[0]} cannot be read: {error.__cause__ or error}") from None


def columns_of(names: list[str], place: str) -> tuple[str, str | None, list[str]]:
    """The image column, the label column if any, the caption columns. Raises BadData."""
    image = next((name for name in IMAGE_COLUMNS if name in names), None)
    label = next((name for name in LABEL_COLUMNS if name in names), None)
    captions = sorted(name for name in names if name.startswith(CAPTION_PREFIX))
    if image is None or (label is None and not captions):
        raise BadData(
            f"{place} has the columns {', '.join(names)}; expected one of {', '.join(IMAGE_COLUMNS)}, and one of "
            f"{', '.join(LABEL_COLUMNS)} or {CAPTION_PREFIX}..."
        )
    return image, label, captions


def rows_of(stored: Any, place: str, where: Where, told: str, classes: int | None, files: tuple[Path, ...]) -> Rows:
    """The rows of a ``datasets.Dataset``. Raises BadData."""
    from datasets import ClassLabel

    if len(stored) == 0:
        raise BadData(f"{place} holds no rows")
    image, label, captions = columns_of(stored.column_names, place)
    table = stored.with_format("arrow")[:]
    if label is None:
        labels, classes = np.arange(len(stored)), 0
    else:
        feature = stored.features[label]
        known = feature.num_classes if isinstance(feature, ClassLabel) else classes
        labels, classes = checked_labels(table[label].to_numpy(), known, place)
    texts = tuple(zip(*(table[name].to_pylist() for name in captions), strict=True))
    return Rows(
        image=encoded(table[image], place),
        place=lambda row: f"row {row} of {place}",
        labels=labels,
        classes=classes,
        where=where,
        told=told,
        captions=texts,
        files=files,
    )


def encoded(column: Any, place: str) -> Callable[[int], bytes]:
    """Row number -> the file's bytes, of a chunked column of bytes or of {bytes, path}. Raises BadData."""
    import pyarrow as pa

    chunks, starts, total = [], [], 0
    for chunk in column.chunks:
        if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("bytes") >= 0:
            values = chunk.flatten()[chunk.type.get_field_index("bytes")]
        else:
            values = chunk
        if not (pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)):
            raise BadData(f"{place}: images are {chunk.type}; expected bytes, or a struct with bytes")
        chunks.append(values)
        starts.append(total)
        total += len(values)

    def image(row: int) -> bytes:
        at = bisect_right(starts, row) - 1
        value = chunks[at][row - starts[at]].as_py()
        if value is None:
            raise OSError("no bytes are stored")
        return bytes(value)

    return image
