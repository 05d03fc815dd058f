"""Fixtures of more than one test file."""

from __future__ import annotations

import os

import pytest

from working_copy import Copy, copy_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy of the tree, shared by the tests of one module."""
    return copy_tree(tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ceilings, results and locks of the tests are cached in their own folder, which goes with them."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
