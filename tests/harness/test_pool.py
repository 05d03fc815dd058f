"""Input sets that change after every use, along the axes the track names."""

from __future__ import annotations

import random

import numpy as np
import pytest

from archbench.checks import Wrong
from archbench.harness.pool import Pool, rolled

TABLE, ROWS, NUMBERS = np.arange(12.0).reshape(3, 4), np.arange(3.0), np.arange(5)


def test_the_longest_axis_is_rolled_where_none_is_named() -> None:
    table, rows, numbers = rolled((TABLE, ROWS, NUMBERS), 1)
    assert (table == np.roll(TABLE, 1, axis=1)).all()
    assert (rows == np.roll(ROWS, 1)).all()
    assert numbers is NUMBERS  # integers may be indices


def test_what_belongs_together_is_rolled_together_and_what_is_to_stay_stays() -> None:
    table, rows, kept = rolled((TABLE, ROWS, TABLE), 2, (0, 0, None))
    assert (table == np.roll(TABLE, 2, axis=0)).all()
    assert (table[:, 0] // 4 == rows).all()
    assert kept is TABLE


def test_an_axis_is_named_for_every_input() -> None:
    with pytest.raises(ValueError, match="argument"):
        rolled((TABLE, ROWS), 1, (0,))


def test_a_pool_rolls_as_it_is_told_and_knows_what_it_holds() -> None:
    pool = Pool((TABLE, ROWS), 2, random.Random(0), (0, None))
    for _ in range(3):
        pool.renew(pool.sets)
    assert all((np.sort(table[:, 0]) == TABLE[:, 0]).all() and (rows == ROWS).all() for table, rows in pool.sets)
    pool.check()
    pool.sets[0][1][0] = -1
    with pytest.raises(Wrong, match=r"input\[1\]"):
        pool.check()
