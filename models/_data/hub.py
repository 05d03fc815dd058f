"""Data sets of the Hugging Face Hub, fetched once into the library's own cache.

Without a network the library retries for half a minute before it gives up, so the Hub's host is called first, for
three seconds. With HF_HUB_OFFLINE set nothing is called and what was fetched earlier is used.

Source: https://huggingface.co/docs/datasets/loading
"""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from archbench.models._data import DataMissing

CONNECT_S = 3.0
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
ENDPOINT = "https://huggingface.co"


@dataclass(frozen=True)
class Repository:
    """A set's place on the Hub."""

    id: str
    classes: int  # 0: captions
    splits: dict[str, str]
    gated: bool = False


TWO = {"train": "train", "validation": "test", "test": "test"}
REPOSITORIES = {
    "mnist": Repository("ylecun/mnist", 10, TWO),
    "cifar10": Repository("uoft-cs/cifar10", 10, TWO),
    "flickr8k": Repository("jxie/flickr8k", 0, {split: split for split in TWO}),
    # The labels of ImageNet's test split are secret: what the literature reports is its validation split.
    "imagenet-1k": Repository(
        "ILSVRC/imagenet-1k", 1000, {"train": "train", "validation": "validation", "test": "validation"}, gated=True
    ),
}


def unreachable() -> str | None:
    """Why the Hub cannot be called, or None."""
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE):
        return None  # the library itself stays offline and looks into its cache
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    url = urlsplit(proxy or os.environ.get("HF_ENDPOINT") or ENDPOINT)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    reached = threading.Event()

    def call() -> None:
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError:
            return
        reached.set()

    # A thread, because the look-up of a name has no time limit of its own.
    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(CONNECT_S)
    return None if reached.is_set() else f"{host} does not answer; with HF_HUB_OFFLINE=1 an earlier download is used"


def fetch(name: str, split: str) -> tuple[Any, str, tuple[Path, ...]]:
    """The ``datasets.Dataset`` of a known name, images not decoded; how it is told; the files it was made into.

    Raises DataMissing with the reason.
    """
    if reason := unreachable():
        raise DataMissing(reason)
    from datasets import Image, load_dataset
    from datasets.exceptions import DatasetsError

    repository = REPOSITORIES[name]
    try:
        stored = load_dataset(repository.id, split=repository.splits[split])
    except (OSError, DatasetsError) as error:
        page = f"{ENDPOINT}/datasets/{repository.id}"
        login = f"; it is gated: accept its terms at {page}, then `hf auth login` or set HF_TOKEN"
        raise DataMissing(f"{repository.id}: {error}{login if repository.gated else ''}") from None
    for column, feature in stored.features.items():
        if isinstance(feature, Image):
            stored = stored.cast_column(column, Image(decode=False))
    return stored, f"the Hub's {repository.id}", tuple(Path(file["filename"]) for file in stored.cache_files)
