"""The export as Parquet, for people with their own tools: a row per row, flat columns, the same numbers.

Needs the package pyarrow (the extra ``board``); everything else here works without it.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from archbench.reports.export import as_dict
from archbench.reports.row import Row
from archbench.reports.rows import Results

BATCH = 20_000  # rows held as columns at a time: what bounds the memory of a large archive
TEXTS = (
    "machine",
    "commit",
    "track",
    "case",
    "contender",
    "status",
    "reason",
    "baseline",
    "reproduce",
    "origin",
    "source",
)


class NoPyarrow(ValueError):
    """Parquet was asked for where pyarrow is not installed."""


def as_parquet(results: Results) -> bytes:
    """The rows as a Parquet file. Raises NoPyarrow."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        raise NoPyarrow("Parquet needs the package pyarrow: pip install 'archbench[board]'") from error
    metrics = sorted({name for row in results.all_rows() for name in row.metrics})
    fields = [(name, arrow.string()) for name in TEXTS]
    fields += [("rank_lo", arrow.int32()), ("rank_hi", arrow.int32()), ("limit_fraction", arrow.float64())]
    for name in metrics:
        fields += [(f"{name}_{part}", arrow.float64()) for part in ("value", "lo", "hi")]
        fields += [(f"{name}_n", arrow.int64()), (f"{name}_unit", arrow.string())]
    schema = arrow.schema([*fields, ("host", arrow.string())])
    out = io.BytesIO()
    with parquet.ParquetWriter(out, schema, compression="zstd") as writer:
        for batch in _batches(results.all_rows()):
            flat = [_flat(row, metrics) for row in batch]
            columns = [[row[name] for row in flat] for name in schema.names]
            writer.write_table(arrow.table(columns, schema=schema))
    return out.getvalue()


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    pending = iter(rows)
    while batch := list(itertools.islice(pending, BATCH)):
        yield batch


def _flat(row: Row, metrics: list[str]) -> dict[str, Any]:
    held = as_dict(row)
    flat: dict[str, Any] = {name: held[name] for name in (*TEXTS, "limit_fraction")}
    flat["rank_lo"], flat["rank_hi"] = held["rank"] or (None, None)
    for name in metrics:
        metric = held["metrics"].get(name) or {"value": None, "ci": None, "n": None, "unit": None}
        flat[f"{name}_value"] = metric["value"]
        flat[f"{name}_lo"], flat[f"{name}_hi"] = metric["ci"] or (None, None)
        flat[f"{name}_n"], flat[f"{name}_unit"] = metric["n"], metric["unit"]
    flat["host"] = json.dumps(held["host"], sort_keys=True, allow_nan=False)
    return flat
