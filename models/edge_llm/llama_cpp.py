"""llama.cpp, through the low-level API of llama-cpp-python.

The file is mapped into memory, matrices that have a quicker order are repacked while it is loaded, and the settings are
llama-bench's: batches of 2048 tokens in pieces of 512, flash attention where it runs, one number of threads for prompts
and generation. A pass asks for the logits of its last token only. The cache is rewound by forgetting positions, so that
every pass finds the cells that the one before it used.

Source: https://github.com/ggml-org/llama.cpp, https://github.com/abetlen/llama-cpp-python
"""

from __future__ import annotations

import ctypes
import weakref
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from archbench.hardware.cpu import usable_cores
from archbench.models.edge_llm import EdgeCase, Logits, Tokens, prefix
from archbench.models.edge_llm._weights import open_weights
from archbench.track import Contender, Unavailable

CACHE_TYPES = {"f32": llama_cpp.GGML_TYPE_F32, "f16": llama_cpp.GGML_TYPE_F16, "q8_0": llama_cpp.GGML_TYPE_Q8_0}
BATCH = 2048  # tokens of one llama_decode
MICRO_BATCH = 512  # tokens that go through a layer together
CONTEXT_FULL = 1  # what llama_decode returns then
LOG_ERROR = 4  # of ggml_log_level
COMPLAINTS: list[str] = []  # of the library, that nobody was told yet


@llama_cpp.llama_log_callback
def listen(level: int, text: bytes, _: Any) -> None:
    """The library's log: errors are kept, as the reason of a refusal; the rest is dropped."""
    if level == LOG_ERROR:
        COMPLAINTS.append(text.decode(errors="replace").strip())


class LlamaDecoder:
    """A model and a context of it; both are freed with the object."""

    def __init__(self, file: Path, case: EdgeCase) -> None:
        """Raises Unavailable where the library refuses the file or the settings."""
        COMPLAINTS.clear()
        llama_cpp.llama_log_set(listen, None)
        llama_cpp.llama_backend_init()
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if not model:
            raise Unavailable(f"llama.cpp does not load {file.name}: {_complaint().replace(str(file), 'it')}")
        context = llama_cpp.llama_init_from_model(model, context_params(case))
        if not context:
            llama_cpp.llama_model_free(model)
            raise Unavailable(f"llama.cpp makes no context of {file.name} with a {case.kv} cache: {_complaint()}")
        weakref.finalize(self, _free, context, model)
        self._context = context
        self._memory = llama_cpp.llama_get_memory(context)
        self._vocabulary = case.config.vocabulary
        # Prepared here, because between two tokens every line of Python meets cold caches: the weights have passed.
        size = llama_cpp.llama_n_batch(context)  # never more than the context; a longer batch aborts the process
        self._tokens = np.zeros(size, np.int32)
        self._batch = llama_cpp.llama_batch_get_one(self._tokens.ctypes.data_as(llama_cpp.llama_token_p), size)
        self._logits, self._address = np.empty(0, np.float32), 0
        self._depth = case.depth
        if case.depth:
            self(prefix(case))

    def rewind(self) -> None:
        llama_cpp.llama_memory_seq_rm(self._memory, 0, self._depth, -1)

    def __call__(self, tokens: Tokens) -> Logits:
        """Raises RuntimeError where the library fails: the context is full, or a token is not of the vocabulary."""
        size, batch = len(self._tokens), self._batch
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            batch.n_tokens = len(part)
            self._tokens[: len(part)] = part
            if code := llama_cpp.llama_decode(self._context, batch):
                why = "the context is full" if code == CONTEXT_FULL else _complaint()
                raise RuntimeError(f"llama_decode gives {code} for {len(part)} tokens: {why}")
        where = llama_cpp.llama_get_logits_ith(self._context, -1)
        address = ctypes.addressof(where.contents)
        if address != self._address:
            self._address, self._logits = address, np.ctypeslib.as_array(where, (self._vocabulary,))
        return self._logits


def context_params(case: EdgeCase) -> Any:
    """A context just large enough for the case; llama.cpp rounds it up to whole blocks of 256 positions."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = case.depth + case.tokens
    params.n_batch, params.n_ubatch = BATCH, MICRO_BATCH
    params.n_threads = params.n_threads_batch = case.threads or usable_cores()
    # Keys and values of 16 bits alone move float32 logits by 2e-4, and flash attention rounds them to so many. The
    # case's "f16" allows for more.
    exact = case.weights == "f32" and case.kv == "f16"
    params.type_k = params.type_v = CACHE_TYPES["f32" if exact else case.kv]
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED if exact else llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO
    params.swa_full = False
    return params


def _complaint() -> str:
    """What the library said first: later errors follow from it."""
    first = COMPLAINTS[0] if COMPLAINTS else "it does not say why"
    COMPLAINTS.clear()
    return first


def _free(context: Any, model: Any) -> None:
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)


def build(case: EdgeCase) -> LlamaDecoder:
    return LlamaDecoder(open_weights(case).path, case)


CONTENDER: Contender[EdgeCase] = Contender(build=build, family="peer")
