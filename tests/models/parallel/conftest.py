"""Tensors this small only wait for threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """What is counted does not depend on threads."""
    torch = pytest.importorskip("torch", reason="no torch installed")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
