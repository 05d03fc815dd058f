"""Bytes a process puts on the wire: what the kernel counted on its sockets, or what its collectives must have sent.

gloo talks over TCP, on one host as between two, and the kernel counts each connection's bytes: what is read before and
after some updates differs by exactly what they sent, headers of gloo's messages included. NCCL goes past the sockets
(shared memory, NVLink, InfiniBand); there every collective the profiler saw is counted as what a ring sends of it.

Letters: n ranks of a group.

Source: Linux include/uapi/linux/tcp.h (struct tcp_info); NCCL tests, doc/PERFORMANCE.md (bytes of a ring)
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator

from archbench.models._profile import Event

_SENT = struct.Struct("<QQ")  # bytes sent, and sent again
_SENT_AT = 200  # where they are in struct tcp_info, since Linux 4.19

FLOAT_BYTES = 4  # of a number in float32

# What a rank of n sends of a message, in its size: the larger of what goes in and what comes out.
RING = {
    "allreduce": lambda n: 2 * (n - 1) / n,
    "allgather": lambda n: (n - 1) / n,
    "_allgather_base": lambda n: (n - 1) / n,
    "all_gather_into_tensor_coalesced": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "_reduce_scatter_base": lambda n: (n - 1) / n,
    "reduce_scatter_tensor_coalesced": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "all_to_allv": lambda n: (n - 1) / n,
    "broadcast": lambda n: (n - 1) / n,
    "send": lambda n: 1.0,
}
SIZES = {"Double": 8, "Long": 8, "Float": 4, "Int": 4, "Half": 2, "BFloat16": 2, "Char": 1, "Byte": 1, "Bool": 1}


def sent_bytes() -> int | None:
    """Bytes this process has sent over its open TCP connections, without repetitions; None where nobody counts."""
    if sys.platform != "linux":
        return None
    return sum(_sent(connection) for connection in _connections())


def _connections() -> Iterator[socket.socket]:
    """Duplicates of this process' TCP sockets, one after the other."""
    for name in os.listdir("/proc/self/fd"):
        try:
            is_socket = os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
            duplicate = os.dup(int(name)) if is_socket else None
        except OSError:  # closed meanwhile
            continue
        if duplicate is not None:
            with socket.socket(fileno=duplicate) as found:
                if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                    yield found


def _sent(connection: socket.socket) -> int:
    """Of an older kernel 0: it does not count them."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT_AT + _SENT.size)
    if len(info) < _SENT_AT + _SENT.size:
        return 0
    sent, again = _SENT.unpack_from(info, _SENT_AT)
    return int(sent - again)


def collective_bytes(events: Iterable[Event]) -> float:
    """What a rank sends for the collectives among a profiler's events, each done as a ring."""
    total = 0.0
    for event in events:
        told = event.get("args", {})
        share = RING.get(told.get("Collective name", ""))
        if event.get("name") == "record_param_comms" and share is not None:
            numbers = max(told["In msg nelems"], told["Out msg nelems"])
            total += share(told["Group size"]) * numbers * SIZES[told["dtype"]]
    return total
