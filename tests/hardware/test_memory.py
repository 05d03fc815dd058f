"""Pages and swap as the kernel lists them."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import raspberry
from archbench.hardware.detect import detect
from archbench.hardware.memory import Swap, in_words, page_bytes, swaps

Record = Callable[[Mapping[str, str]], Path]


@pytest.mark.parametrize(("machine", "size"), [("raspberry-pi-5", 16384), ("raspberry-pi-4", 4096)])
def test_the_page_size_is_a_fact(record: Record, machine: str, size: int) -> None:
    root = record({"proc/self/smaps": raspberry.SMAPS[machine]})
    assert page_bytes(root) == size
    assert detect(root).facts()["memory.page_bytes"] == size


def test_a_kernel_that_does_not_say_has_no_page_size(record: Record) -> None:
    assert page_bytes(record({})) is None
    assert page_bytes(record({"proc/self/smaps": ""})) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_this_machines_page_size_is_the_systems() -> None:
    assert page_bytes() == resource.getpagesize()


@pytest.mark.parametrize(
    ("listed", "found", "words"),
    [
        (raspberry.SWAPS_EMPTY, [], ""),
        ("", [], ""),
        (raspberry.SWAPS_BOOKWORM, [Swap("file", 524272 << 10, 102400 << 10, True)], "file 512 MiB on a card"),
        (raspberry.SWAPS_TRIXIE, [Swap("zram", 2097136 << 10, 1280 << 10, False)], "zram 2.00 GiB"),
        (
            raspberry.SWAPS_PARTITION,
            [Swap("partition", 1048572 << 10, 51200 << 10, True)],
            "partition 1.00 GiB on a card",
        ),
        (
            raspberry.SWAPS_BOTH,
            [Swap("file", 4194300 << 10, 867988 << 10, False), Swap("zram", 10064516 << 10, 0, False)],
            "file 4.00 GiB, zram 9.60 GiB",
        ),
        (raspberry.SWAPS_EMPTY + "/half a line\n", [], ""),
    ],
)
def test_swap_has_a_kind_and_a_place(record: Record, listed: str, found: list[Swap], words: str) -> None:
    root = record({"proc/swaps": listed, "proc/self/mountinfo": raspberry.MOUNTINFO})
    assert swaps(root) == found
    assert in_words(found) == words
    assert detect(root).facts().get("memory.swap", "") == words


def test_a_later_mount_hides_an_earlier_one(record: Record) -> None:
    mounts = raspberry.MOUNTINFO + "99 21 8:2 / /var rw,relatime shared:50 - ext4 /dev/sda2 rw\n"
    (swap,) = swaps(record({"proc/swaps": raspberry.SWAPS_BOOKWORM, "proc/self/mountinfo": mounts}))
    assert not swap.on_card
    mounts += "100 21 179:9 / /var rw,relatime shared:51 - ext4 /dev/mmcblk0p4 rw\nhalf a line\n"
    (swap,) = swaps(record({"proc/swaps": raspberry.SWAPS_BOOKWORM, "proc/self/mountinfo": mounts}))
    assert swap.on_card
