"""Model files: where they lie, why one is missing, and how they are made.

Every model and kind of weights is one GGUF file, so that all runtimes hold the same numbers, and a quantised case is a
question about a runtime and not about a quantiser. ``archbench edge build`` makes them from the best weights there are
(``_artefacts_sources.py``). A file is written beside its name and renamed. Its last bytes are a digest of all before
them, which GGUF's readers never look at: a file that was cut short or changed is refused by name. The digest is also
what a row says about the weights it was measured on.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from archbench.cells import Data
from archbench.models.edge_llm._config import MODELS
from archbench.models.edge_llm._weights_gguf import BadGguf
from archbench.track import Unavailable

if TYPE_CHECKING:
    from archbench.models.edge_llm import EdgeCase

FOLDER = "ARCHBENCH_EDGE"  # environment variable
SEAL = b"archbench edge 2"  # before the digest, at the end of the file; raised when the same name means other numbers
DIGEST_BYTES = 32
TINY = "tiny_random"  # made where it is asked for: half a second
PIECE = 1 << 20  # bytes that are read at a time

BadArtefact = BadGguf


def folder() -> Path:
    """$ARCHBENCH_EDGE, or archbench/edge in the user's cache."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench" / "edge"


def path(model: str, weights: str) -> Path:
    """Where the file of a model and a kind of weights lies, or would."""
    return folder() / f"{model}-{weights}.gguf"


def never(model: str, weights: str) -> str | None:
    """Why a model cannot have weights of a kind, wherever; None: it can."""
    from archbench.models.edge_llm import _artefacts_sources as sources

    return sources.never(model, weights)


def missing(model: str, weights: str) -> str | None:
    """Why a model cannot be measured with such weights here, in a sentence that says what to do; None: it can.

    The tiny model is made when it is not there. Whether a file is damaged is seen when it is opened.
    """
    from archbench.models.edge_llm import _artefacts_sources as sources

    if reason := never(model, weights):
        return reason
    where = path(model, weights)
    try:
        if model == TINY and not is_whole(where):
            build(model, [weights])
    except ImportError as error:
        return f"needs the package {error.name}"
    except (BadArtefact, OSError) as error:
        return str(error)
    if not where.exists():
        kind = f" --weights {weights}" if weights not in sources.usual(model) else ""
        return f"no weights of {model} in {weights}: run `archbench edge build {model}{kind}`"
    try:
        fingerprint(where)
    except (BadArtefact, OSError) as error:
        return str(error)
    return None


def build(model: str, kinds: Iterable[str] = ()) -> list[Path]:
    """Make the files of a model, whole ones left alone. Raises BadArtefact, ImportError, OSError."""
    from archbench.models.edge_llm import _artefacts_sources as sources
    from archbench.models.edge_llm import _artefacts_writing as writing

    if model not in MODELS:
        raise BadArtefact(f"no model {model!r}: there are {', '.join(MODELS)}")
    made = []
    with _only_one():
        for kind in kinds or sources.usual(model):
            if reason := never(model, kind):
                raise BadArtefact(reason)
            where = path(model, kind)
            if not is_whole(where):
                writing.write(where, model, kind)
            made.append(where)
    return made


@contextmanager
def _only_one() -> Iterator[None]:
    """One process makes files at a time; the others wait and find them made."""
    if folder().is_file():
        raise BadArtefact(f"{folder()} is a file: name a folder with {FOLDER}")
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ready(case: EdgeCase) -> Path:
    """The file of a case, whole. Raises Unavailable with what to do where there is none, or a damaged one."""
    reason = missing(case.model, case.weights)
    if reason is not None:
        raise Unavailable(reason)
    where = path(case.model, case.weights)
    try:
        verify(where)
    except (BadArtefact, OSError) as error:
        raise Unavailable(str(error)) from error
    return where


def seal(where: Path) -> None:
    """Append the digest of a file to it."""
    digest = _digest(where, where.stat().st_size)
    with where.open("ab") as file:
        file.write(SEAL + digest)


def verify(where: Path) -> None:
    """Raises BadArtefact where a file is not what was written, and OSError where it cannot be read.

    A process reads a file for this once, as long as size and time of it stay.
    """
    status = where.stat()
    _verify(where, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16)
def _verify(where: Path, size: int, changed_ns: int) -> None:
    said = fingerprint(where)
    if _digest(where, size - len(SEAL) - DIGEST_BYTES).hex() != said:
        raise BadArtefact(f"{where} is damaged or was changed: run `{_again(where)}`")


def fingerprint(where: Path) -> str:
    """The digest a file says it has, hexadecimal. Raises BadArtefact where its end is missing, and OSError."""
    with where.open("rb") as file:
        file.seek(max(0, where.stat().st_size - len(SEAL) - DIGEST_BYTES))
        end = file.read()
    if end[: len(SEAL)] != SEAL or len(end) != len(SEAL) + DIGEST_BYTES:
        raise BadArtefact(f"{where} is not complete, or another version of archbench made it: run `{_again(where)}`")
    return end[len(SEAL) :].hex()


def _again(where: Path) -> str:
    model, _, kind = where.stem.rpartition("-")
    return f"archbench edge build {model} --weights {kind}"


def is_whole(where: Path) -> bool:
    try:
        verify(where)
    except (BadArtefact, OSError):
        return False
    return True


def _digest(where: Path, length: int) -> bytes:
    total = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with where.open("rb") as file:
        while length > 0 and (piece := file.read(min(PIECE, length))):
            total.update(piece)
            length -= len(piece)
    return total.digest()


def data(case: EdgeCase) -> Data | None:
    """The weights a case is measured on; None where they are missing."""
    if missing(case.model, case.weights) is not None:
        return None
    origin = f"{MODELS[case.model].origin}; weights in {case.weights}"
    return Data(case.model, origin, fingerprint(path(case.model, case.weights)))
