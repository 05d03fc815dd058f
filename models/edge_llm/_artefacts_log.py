"""llama.cpp's log while it makes a file or reads a vocabulary.

Errors are said; the hundreds of lines of a good day are not.

Source: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h (``llama_log_set``)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import llama_cpp

ERROR = 4  # of ggml's levels


@llama_cpp.llama_log_callback
def _errors(level: int, text: bytes, _: object) -> None:
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


@contextmanager
def only_errors() -> Iterator[None]:
    """Afterwards the library logs as it does by itself."""
    llama_cpp.llama_log_set(_errors, None)
    try:
        yield
    finally:
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), None)
