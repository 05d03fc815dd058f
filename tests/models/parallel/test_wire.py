"""Bytes sent: as the kernel counts them on sockets, and as collectives are counted where there are none."""

from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

pytest.importorskip("torch", reason="the profiler's events are torch's")

from archbench.models.parallel._measures.wire import RING, collective_bytes, sent_bytes

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts a connection's bytes for its process")
def test_the_kernel_counts_what_goes_through_a_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            before = sent_bytes()
            near.sendall(bytes(100_000))
            received = 0
            while received < 100_000:
                received += len(far.recv(1 << 16))
            far.sendall(bytes(11))
            assert near.recv(11, socket.MSG_WAITALL) == bytes(11)
            after = sent_bytes()
    assert before is not None
    assert after is not None
    assert after - before == 100_011  # both ends are this process


def comms(name: str, into: int, out: int, group: int = 4, dtype: str = "Float") -> dict[str, Any]:
    told = {"Collective name": name, "In msg nelems": into, "Out msg nelems": out, "Group size": group, "dtype": dtype}
    return {"ph": "X", "cat": "cpu_op", "name": "record_param_comms", "ts": 0, "dur": 1, "args": told}


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (comms("allreduce", 1000, 1000), 2 * 3 / 4 * 4000),
        (comms("_allgather_base", 250, 1000), 3 / 4 * 4000),
        (comms("_reduce_scatter_base", 1000, 250, dtype="BFloat16"), 3 / 4 * 2000),
        (comms("send", 1000, 1000, group=2), 4000),
        (comms("recv", 1000, 1000, group=2), 0),
        (comms("wait", 1000, 1000), 0),
        ({"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 1}, 0),
    ],
)
def test_a_collective_is_counted_as_a_ring(event: dict[str, Any], expected: float) -> None:
    assert collective_bytes([event, event]) == pytest.approx(2 * expected)


def test_one_rank_sends_nothing() -> None:
    assert [RING[name](1) for name in RING if name != "send"] == [0] * (len(RING) - 1)
