"""Moves memory into huge pages that a library allocated itself.

A decoder reads all weights for every token, through pages of 4 KiB: a walk of the page table for each of them. Linux
gives pages of 2 MiB (on x86) to whom asks for them; for a library that does not, its caller can. What the library took
within a block of code is what is in use behind it and was not before. Memory that was freed and kept is given back
first, or the library would get it, unseen.

Source: https://docs.kernel.org/admin-guide/mm/transhuge.html, madvise(2)
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from archbench.track import Unavailable

SIZE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
ADVISE, COLLAPSE = 14, 25  # MADV_HUGEPAGE; MADV_COLLAPSE, since Linux 6.1
ENOUGH = 0.9  # of the new memory


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """What the block took, and has not freed at its end, lies in huge pages then. Raises Unavailable."""
    if not SIZE.exists():
        raise Unavailable("the kernel gives no huge pages on request")
    huge = int(SIZE.read_text())
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
    if hasattr(libc, "malloc_trim"):  # the GNU C library's
        libc.malloc_trim(ctypes.c_size_t(0))
    before = in_use(huge)
    yield
    new = in_use(huge) - before
    moved = 0
    for start in new:
        libc.madvise(start, huge, ADVISE)
        moved += libc.madvise(start, huge, COLLAPSE) == 0
    if moved < ENOUGH * len(new):
        raise Unavailable(f"the system makes {moved} huge pages of {len(new)} (needs Linux 6.1 and free memory)")


def in_use(huge: int) -> set[int]:
    """Where the huge pages could begin of which this process has written to a part. Memory of files is left out."""
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p)
    resident = (ctypes.c_ubyte * (huge // mmap.PAGESIZE))()
    found = set()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, rights, _, _, node, *name = line.split(maxsplit=5)
        if rights.startswith("rw") and node == "0" and name in ([], ["[heap]"]):
            low, high = (int(each, 16) for each in addresses.split("-"))
            for start in range(-(-low // huge) * huge, high - huge + 1, huge):
                if libc.mincore(start, huge, resident) == 0 and any(resident):
                    found.add(start)
    return found
