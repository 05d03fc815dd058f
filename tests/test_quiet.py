"""Imports that say nothing, and leave the rules of warnings and logging as they were."""

from __future__ import annotations

import logging
import warnings

import pytest

from archbench.quiet import quiet_import


def test_neither_warnings_nor_records_are_heard_inside_and_both_are_afterwards(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    logger = logging.getLogger("a.library")
    with quiet_import():
        logger.warning("no kernel for another device")
        warnings.warn("an old call", DeprecationWarning, stacklevel=1)
        logger.error("broken")
    assert [record.message for record in caplog.records] == ["broken"]
    assert not recwarn.list
    logger.warning("heard again")
    assert caplog.records[-1].message == "heard again"
    with pytest.warns(UserWarning, match="heard too"):
        warnings.warn("heard too", stacklevel=1)


def test_what_was_set_before_is_set_again_where_the_import_fails(caplog: pytest.LogCaptureFixture) -> None:
    logging.disable(logging.ERROR)
    try:
        with pytest.raises(ModuleNotFoundError), quiet_import():
            import no_such_package  # type: ignore[import-not-found]  # noqa: F401
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)
