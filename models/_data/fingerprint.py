"""What identifies a set: a BLAKE2b of its content in order, the same on every machine and in every folder.

It covers every image as it is stored, its label and its captions. A folder with a file per image (ImageNet: 140 GB)
is known by every file's name inside the folder and its size, and by the content of 4,096 files evenly spread over it.
The result is kept by the files' paths, sizes and times, so that an unchanged set is not read again.

Source: https://www.rfc-editor.org/rfc/rfc7693
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from archbench.models._data import Rows

SAMPLED_FILES = 4096
MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"BM": "BMP"}
LOSSY = ("JPEG", "WebP")


def cache_folder(kind: str) -> Path:
    """Where this user's caches of one kind lie; made when it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench" / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def of_text(text: str) -> str:
    """The fingerprint of a text."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=32).hexdigest()


def of_rows(rows: Rows) -> tuple[str, str]:
    """The fingerprint of a set, and its encodings in words: ``50,000 JPEG (lossy)``."""
    files = rows.files if rows.folder is None else [f"{rows.folder}/{name}" for name in rows.names]
    if not files:
        return computed(rows, [])
    stats = [size_and_time(file) for file in files]
    sizes = [size for size, _ in stats]
    lines = [f"{file} {size} {time_ns}" for file, (size, time_ns) in zip(files, stats, strict=True)]
    # A test split's labels are numbered by the train split's folders, which are not among its own files.
    key = digest([*lines, hashlib.blake2b(label_bytes(rows), digest_size=32).hexdigest()])
    kept = cache_folder("fingerprints") / f"{key}.json"
    try:
        fingerprint, encodings = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        fingerprint, encodings = computed(rows, sizes)
        whole = kept.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps([fingerprint, encodings]), encoding="utf-8")
        whole.replace(kept)
    return fingerprint, encodings


def size_and_time(file: str | Path) -> tuple[int, int]:
    """A file's size and time in ns; -1 and 0 for one that is not there, as behind a dangling link."""
    try:
        stat = os.stat(file)
    except OSError:
        return -1, 0  # told as unreadable, and counted when it is decoded
    return stat.st_size, stat.st_mtime_ns


def label_bytes(rows: Rows) -> bytes:
    return np.ascontiguousarray(rows.labels, dtype="<i8").tobytes()


def digest(lines: list[str]) -> str:
    return hashlib.blake2b("\n".join(lines).encode("utf-8", "surrogateescape"), digest_size=32).hexdigest()


def computed(rows: Rows, sizes: list[int]) -> tuple[str, str]:
    count = len(rows.labels)
    hashed = hashlib.blake2b(digest_size=32)
    chosen: Sequence[int] = range(count)
    if rows.folder is not None:
        for name, size in zip(rows.names, sizes, strict=True):
            hashed.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
        chosen = (
            sorted({row * count // SAMPLED_FILES for row in range(SAMPLED_FILES)}) if count > SAMPLED_FILES else chosen
        )
    seen: Counter[str] = Counter()
    for row in chosen:
        encoding, content = stored(rows, row)
        seen[encoding] += 1
        hashed.update(b"%d\0" % len(content))
        hashed.update(content)
    hashed.update(label_bytes(rows))
    for texts in rows.captions:
        hashed.update("\0".join(texts).encode("utf-8") + b"\n")
    told = ", ".join(
        f"{number:,} {encoding}{' (lossy)' if encoding in LOSSY else ''}" for encoding, number in seen.most_common()
    )
    return hashed.hexdigest(), told if len(chosen) == count else f"of {len(chosen):,} looked at, {told}"


def stored(rows: Rows, row: int) -> tuple[str, bytes]:
    """An image's encoding, and its content as it is stored."""
    try:
        image = rows.image(row)
    except OSError:
        return "unreadable", b""
    if isinstance(image, np.ndarray):
        return "raw", repr(image.shape).encode() + image.tobytes()
    return next((name for magic, name in MAGIC.items() if image.startswith(magic)), "unknown"), image
