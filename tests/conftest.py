"""Fixtures of more than one test file."""

from __future__ import annotations

import pytest

from working_copy import Copy, copy_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A copy of the tree, shared by the tests of one module."""
    return copy_tree(tmp_path_factory.mktemp("copy"))
