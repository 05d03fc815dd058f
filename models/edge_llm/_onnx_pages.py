"""Moves memory into huge pages that a library allocated itself.

A decoder reads all weights for every token, through pages of 4 KiB: a walk of the page table for each of them. Linux
gives 2 MiB pages to whom asks for them, and a library that does not ask can be asked for: what it allocated within a
block of code is what the process has more than before.

Source: https://docs.kernel.org/admin-guide/mm/transhuge.html, madvise(2)
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archbench.track import Unavailable

Ranges = list[tuple[int, int]]

HUGE = 2 << 20
ADVISE, COLLAPSE = 14, 25  # MADV_HUGEPAGE; MADV_COLLAPSE, since Linux 6.1
ENOUGH = 0.9  # of the new memory in use


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """What the block allocated, and has not freed at its end, lies in huge pages then. Raises Unavailable."""
    if sys.platform != "linux":
        raise Unavailable("huge pages on request are Linux's")
    before = anonymous()
    yield
    wanted = moved = 0
    libc = ctypes.CDLL(None)
    for start, end in whole_pages(without(anonymous(), before)):
        address, length = ctypes.c_size_t(start), ctypes.c_size_t(end - start)
        libc.madvise(address, length, ADVISE)
        resident = (ctypes.c_ubyte * (length.value // mmap.PAGESIZE))()
        libc.mincore(address, length, resident)
        for page in range(length.value // HUGE):
            small = HUGE // mmap.PAGESIZE
            if any(resident[page * small : (page + 1) * small]):  # nothing to move where nothing was written yet
                wanted += 1
                moved += libc.madvise(ctypes.c_size_t(start + page * HUGE), ctypes.c_size_t(HUGE), COLLAPSE) == 0
    if moved < ENOUGH * wanted:
        raise Unavailable(f"the system makes {moved} huge pages of {wanted} (needs Linux 6.1 and free memory)")


def anonymous() -> Ranges:
    """Addresses the process may write to that belong to no file, in order."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, _, _, node, *name = line.split(maxsplit=5)
        if rights.startswith("rw") and node == "0" and (not name or name[0] == "[heap]"):
            start, end = addresses.split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def without(ranges: Ranges, others: Ranges) -> Ranges:
    """The parts of ranges that are in none of the others."""
    left = list(ranges)
    for low, high in others:
        left = [
            part
            for start, end in left
            for part in ((start, min(end, low)), (max(start, high), end))
            if part[0] < part[1]
        ]
    return left


def whole_pages(ranges: Ranges) -> Ranges:
    """The whole huge pages in ranges."""
    inner = ((-(-start // HUGE) * HUGE, end // HUGE * HUGE) for start, end in ranges)
    return [(start, end) for start, end in inner if start < end]
