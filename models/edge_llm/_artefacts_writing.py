"""Writes a model's weights as a GGUF file, one tensor in memory at a time.

"Pure" files: every matrix is of the kind the file is named after, embedding and output included, and every vector is
float32; llama.cpp's own mixes of kinds are made by its quantiser, from the float16 file. A matrix whose rows are no
multiple of 32 cannot be Q8_0 and stays float16; the file says so (``archbench.kept``).

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from archbench.atomic import replacing
from archbench.models.edge_llm import _artefacts as artefacts
from archbench.models.edge_llm import _artefacts_sources as sources
from archbench.models.edge_llm._weights_blocks import KINDS, quantised

FILE_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q8_0": 7, "q4_k_m": 15}  # llama.cpp's LLAMA_FTYPE
QUANTISATION_VERSION = 2  # of ggml's blocks


def write(where: Path, model: str, kind: str) -> None:
    """Make the file, sealed, at ``where``. Raises BadArtefact, ImportError, OSError."""
    with replacing(where, "new") as staged:
        if kind == sources.MIXED:
            _write_mixed(staged, model)
        else:
            write_pure(staged, sources.source(model), kind)
        artefacts.seal(staged)


def kind_of(shape: tuple[int, ...], kind: str) -> str:
    """How a tensor of this shape is stored in a file of a kind."""
    if len(shape) == 1:
        return "f32"
    return kind if shape[-1] % KINDS[kind].block == 0 else "f16"


def write_pure(where: Path, source: sources.Source, kind: str) -> None:
    """A file without a seal."""
    import numpy as np
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(where, "llama")
    _describe(writer, source, kind)
    kinds = {name: kind_of(shape, kind) for name, shape in source.shapes.items()}
    kept = sorted(name for name, stored in kinds.items() if stored == "f16" != kind)
    if kept:
        writer.add_array("archbench.kept", kept)
    for name, shape in source.shapes.items():
        block, size = KINDS[kinds[name]].block, KINDS[kinds[name]].bytes
        stored = (*shape[:-1], shape[-1] // block * size)
        writer.add_tensor_info(
            name, stored, np.dtype(np.uint8), int(np.prod(stored)), GGMLQuantizationType(KINDS[kinds[name]].number)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, shape in source.shapes.items():
        weights = source.tensor(name).reshape(-1, shape[-1])
        writer.write_tensor_data(quantised(kinds[name], weights))
    writer.close()


def _describe(writer, source: sources.Source, kind: str) -> None:  # type: ignore[no-untyped-def]
    """Metadata: what llama.cpp needs, and where the weights come from."""
    config = source.config
    writer.add_name(source.model)
    writer.add_description(source.origin)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(QUANTISATION_VERSION)
    writer.add_vocab_size(config.vocabulary)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.dim)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.hidden)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_bool("archbench.random", source.random)
    source.add_tokenizer(writer)


def _write_mixed(where: Path, model: str) -> None:
    """llama.cpp's mix of Q4_K and Q6_K, from float16 weights."""
    import llama_cpp

    from archbench.models.edge_llm._artefacts_log import only_errors

    half = artefacts.path(model, "f16")
    with tempfile.TemporaryDirectory(dir=where.parent) as scratch:
        if not artefacts.is_whole(half):
            half = Path(scratch) / half.name
            write_pure(half, sources.source(model), "f16")
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = FILE_TYPES[sources.MIXED]
        parameters.nthread = 1
        with only_errors():
            failed = llama_cpp.llama_model_quantize(str(half).encode(), str(where).encode(), parameters)
    if failed:
        raise artefacts.BadArtefact(f"llama.cpp could not quantise {half} (it returned {failed})")
