"""Which host is this one, and whose measuring lock is whose."""

from __future__ import annotations

import platform
import socket
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from archbench.harness.front import measuring_alone
from archbench.harness.hosts import is_here


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_a_loopback_is_this_host(name: str) -> None:
    assert is_here(name)


def test_a_name_that_leads_to_an_address_of_this_host_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"me.example": "127.0.1.1", "other.example": "192.0.2.7"}  # the latter is nobody's (RFC 5737)

    def resolved(host: str, port: None) -> list[tuple[object, ...]]:
        if host not in found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (found[host], 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    assert [is_here(host) for host in ("me.example", "other.example", "nobody.example")] == [True, False, False]


def test_hosts_that_share_a_home_measure_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    waited: list[str] = []
    with ExitStack() as both:
        for host in ("node0", "node/1"):
            monkeypatch.setattr(platform, "node", lambda host=host: host)
            both.enter_context(measuring_alone(partial(waited.append, host)))
    assert waited == []
    assert len(list((tmp_path / "archbench").glob("measuring-*.lock"))) == 2
