"""Two hosts on one machine, in network namespaces of their own, and what cannot be a run of several hosts.

In the namespaces each host has an address, an interface and a loopback of its own, and between them only a cable.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

pytest.importorskip("torch")

from archbench.cli import app
from archbench.models.parallel import TRACK
from archbench.models.parallel._launch.board import about, differences
from archbench.models.parallel._launch.ranks import Ranks
from archbench.nodes import Nodes
from archbench.track import Failed
from working_copy import Copy

WORKER = "archbench.models.parallel._launch.worker"
CASE = TRACK.test_cases[0]
# The copy's track has one small case to measure, and is done with it quickly.
SMALL = """
from dataclasses import replace
TRACK = replace(TRACK, bench_cases=TRACK.test_cases[:1], timing=replace(TRACK.timing, max_blocks=10, budget_s=1.0))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@dataclass
class Host:
    """Where commands of a host run: ``prefix`` puts them into its network."""

    prefix: list[str]
    address: str


@pytest.fixture(scope="module")
def namespaces() -> Iterator[list[Host]]:
    """Two network namespaces with a cable between them."""
    if shutil.which("ip") is None:
        pytest.skip("needs the program ip: apt-get install iproute2")
    word = secrets.token_hex(2)
    names = [f"archbench-{word}-{n}" for n in range(2)]

    def ip(*arguments: str) -> int:
        return subprocess.run(["ip", *arguments], capture_output=True, text=True).returncode

    try:
        if any(ip("netns", "add", name) for name in names):
            pytest.skip("network namespaces are not allowed here: needs root")
        cable = ["link", "add", f"a{word}", "netns", names[0], "type", "veth", "peer"]
        if ip(*cable, "name", f"b{word}", "netns", names[1]):
            pytest.skip("this kernel or container allows no virtual network cable (veth)")
        for number, (name, end) in enumerate(zip(names, "ab", strict=True)):
            for rest in (
                ("addr", "add", f"10.213.7.{number + 1}/24", "dev", f"{end}{word}"),
                ("link", "set", f"{end}{word}", "up"),
                ("link", "set", "lo", "up"),
            ):
                assert ip("-n", name, *rest) == 0
        yield [Host(["ip", "netns", "exec", name], f"10.213.7.{n + 1}") for n, name in enumerate(names)]
    finally:
        for name in names:
            ip("netns", "delete", name)


@pytest.fixture(scope="module")
def small(tree: Copy) -> Copy:
    package = tree.top / "models" / "parallel" / "__init__.py"
    package.write_text(package.read_text() + SMALL)
    tree.git("add", "-A")
    tree.git("commit", "-q", "-m", "A small case")
    return tree


def started(host: Host, tree: Copy, cache: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*host.prefix, sys.executable, "-m", "archbench", *arguments],
        cwd=tree.top,
        env=tree.environment | {"XDG_CACHE_HOME": str(cache)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_across_two_networks_gives_the_losses_of_one_process(
    namespaces: list[Host], small: Copy, tmp_path: Path
) -> None:
    """The gate compares losses and parameters with one process in float64, before, while and after it is timed."""
    endpoint = f"{namespaces[0].address}:{free_port()}"
    several = ["run", "parallel/ddp", "--force", "--nnodes", "2", "--rdzv-endpoint", endpoint, "--into", str(tmp_path)]
    caches = [Path(os.environ["XDG_CACHE_HOME"]), tmp_path / "cache"]
    hosts = [
        started(host, small, caches[number], [*several, "--node-rank", str(number)])
        for number, host in enumerate(namespaces)
    ]
    said = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(said)
    assert "the rows are on the first host" in said[1]
    files = list(tmp_path.glob("*/cells/*.jsonl"))
    assert [path.parts[-3].endswith("-2-nodes") for path in files] == [True]
    records = files[0].read_text().splitlines()
    assert '"nodes":2' in records[0]
    assert f'"case":"{CASE.slug}","contender":"ddp","status":"ok"' in records[-1]


def side(verb: str, nodes: Nodes) -> subprocess.Popen[str]:
    """What stands beside a run on each host."""
    return subprocess.Popen(
        [sys.executable, "-m", "archbench.models.parallel._nodes", verb],
        env=os.environ | nodes.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_ranks_of_two_hosts_train_fail_and_end_together() -> None:
    """Without namespaces: both hosts have the loopback's address."""
    first, second = (Nodes(2, rank, f"127.0.0.1:{port}") for port in [free_port()] for rank in range(2))
    tokens = TRACK.make_inputs(CASE, 5, "cpu")
    with side("lead", first) as leader, side("follow", second) as follower:
        assert leader.stdout is not None
        assert leader.stdout.readline() == f"say waiting for node 1 at {first.endpoint}\n"
        assert leader.stdout.readline() == "ready\n"
        group = Ranks("archbench.models.parallel.ddp", CASE, 2, first)
        assert TRACK.gate(CASE, tokens, group.ask("train", *tokens)) < 1e-3
        far = [one for one in psutil.Process(follower.pid).children(recursive=True) if WORKER in one.cmdline()]
        assert len(far) == 1
        far[0].kill()
        with pytest.raises(Failed, match=r"^rank 1 on node 1 was killed by SIGKILL"):
            group.ask("train", *tokens)
        leader.kill()
        assert follower.stdout is not None
        assert f"the first host at {first.endpoint} is gone" in follower.stdout.read()
        assert follower.wait(60) == 1
        assert not psutil.pid_exists(far[0].pid)


def test_what_differs_between_hosts_is_named() -> None:
    here = about()
    assert differences(here, dict(here)) == ""
    said = differences(here, here | {"torch": "1.0"})
    assert said == f"torch {here['torch']} here and 1.0 on the first host"


def test_a_port_that_is_taken_is_named(small: Copy) -> None:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        endpoint = f"localhost:{taken.getsockname()[1]}"
        done = small.archbench(
            "run", "parallel/ddp", "--force", "--nnodes", "2", "--rdzv-endpoint", endpoint, check=False
        )
    assert done.returncode == 2
    assert f"port {endpoint.partition(':')[2]} is already in use here" in done.stderr


def test_a_track_that_starts_no_processes_measures_one_host(small: Copy) -> None:
    several = ("--nnodes", "2", "--rdzv-endpoint", "localhost:1")
    for rank in ("0", "1"):
        done = small.archbench("run", "attention", "--force", *several, "--node-rank", rank, check=False)
        assert done.returncode == 2
        assert "attention measures one host: leave --nnodes and --rdzv-endpoint out" in done.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((0, 0, ""), "--nnodes is 0"),
        ((2, 2, "a:1"), "--node-rank is 2"),
        ((2, 0, ""), "--rdzv-endpoint HOST:PORT"),
        ((2, 0, "a"), "give HOST:PORT"),
        ((2, 0, "a:99999"), "give HOST:PORT"),
    ],
)
def test_what_cannot_be_is_refused(given: tuple[int, int, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Nodes(*given)


def test_rows_of_several_hosts_are_never_those_of_one() -> None:
    both = Nodes(2, 1, "node01:29400")
    assert Nodes.told(both.environment()) == both
    assert (both.host, both.port, both.name("board"), both.facts()) == ("node01", 29400, "board-2-nodes", {"nodes": 2})
    assert (Nodes().environment(), Nodes().name("board"), Nodes().facts()) == ({}, "board", {})


def test_the_page_names_options_there_are() -> None:
    page = (Path(__file__).parents[3] / "docs" / "several-hosts.md").read_text()
    named = set(re.findall(r"(?<!\S)--(?:nnodes|node-\w+|rdzv-\w+)", page))
    shown = CliRunner().invoke(app, ["run", "--help"], env={"COLUMNS": "200"}).output
    assert named == {"--nnodes", "--node-rank", "--rdzv-endpoint"}
    assert [option for option in named if option not in shown] == []
