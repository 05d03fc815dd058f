"""Sessions of the project: ``nox -l`` lists them, ``nox -s NAME`` runs one.

Sessions that need torch run in the virtual environment nox itself runs in (the README makes ``.venv``), so that
torch is installed once and ``.venv/bin/archbench`` is there afterwards. Light ones have their own.
"""

import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.error_on_missing_interpreters = True

CONSTRAINTS = ("-c", "constraints.txt")


def install(session: nox.Session) -> None:
    """The project in editable mode with torch and the development tools, at the pinned versions."""
    if sys.prefix == sys.base_prefix:
        session.error("nox runs outside a virtual environment: make one first, as the README's commands do")
    python(session, "-m", "pip", "install", "--quiet", *CONSTRAINTS, "-e", ".[torch,peers,quant,dev]")


def python(session: nox.Session, *arguments: str) -> None:
    """Run the shared environment's Python."""
    session.run(sys.executable, *arguments, external=True)


@nox.session(python=False)
def leaderboard(session: nox.Session) -> None:
    """Measure on this machine for eight minutes, or what the arguments name, and render the leaderboard."""
    install(session)
    python(session, "-m", "archbench", "machine")
    python(session, "-m", "archbench", "run", *(session.posargs or ("--within", "8")))
    python(session, "-m", "archbench", "board")


@nox.session(python=False)
def tests(session: nox.Session) -> None:
    """Run the test suite."""
    install(session)
    python(session, "-m", "pytest", *session.posargs)


@nox.session(reuse_venv=True)
def lint(session: nox.Session) -> None:
    """Check style and formatting."""
    session.install(*CONSTRAINTS, "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(reuse_venv=True)
def types(session: nox.Session) -> None:
    """Type-check the installed wheel, without torch, as a base install has it."""
    session.install(*CONSTRAINTS, "mypy")
    session.install(*CONSTRAINTS, "--force-reinstall", "--no-deps", ".")
    session.install(*CONSTRAINTS, ".")
    session.run("mypy", "-p", "archbench")


@nox.session(python=False)
def asv_smoke(session: nox.Session) -> None:
    """Take asv through check, run, continuous, compare and publish on one small cell of this repository."""
    install(session)
    python(session, "tests/asv_smoke.py")


@nox.session(python=False, default=False)
def bench_harness(session: nox.Session) -> None:
    """Measure the harness itself: what the paired clock costs a call, beside pytest-benchmark."""
    install(session)
    python(session, "-m", "pytest", "tests/bench_harness.py", "-p", "no:cacheprovider", *session.posargs)


@nox.session(python=False, default=False)
def bench_train(session: nox.Session) -> None:
    """Measure what the training loop costs a step."""
    install(session)
    python(session, "tests/models/bench_train.py")


@nox.session(python=False, default=False)
def bench_board(session: nox.Session) -> None:
    """Measure the pages in a browser: when a large leaderboard is ready, how long a sort and a filter take."""
    install(session)
    python(session, "tests/bench_board.py")


@nox.session(python=False, default=False)
def bench(session: nox.Session) -> None:
    """Measure what the arguments name: nox -s bench -- attention/naive --case SLUG."""
    install(session)
    python(session, "-m", "archbench", "run", *session.posargs)


@nox.session(python=False, default=False)
def parallel_faults(session: nox.Session) -> None:
    """Kill ranks of a measuring run at random moments: nox -s parallel_faults -- --kills 20 --seed 1."""
    install(session)
    python(session, "tests/parallel_faults.py", *session.posargs)


@nox.session(python=False, default=False)
def profile(session: nox.Session) -> None:
    """Open traces in TensorBoard: nox -s profile -- DIR (docs/traces.md)."""
    install(session)
    python(session, "-m", "pip", "install", "--quiet", *CONSTRAINTS, "-e", ".[profile]")
    python(session, "-m", "tensorboard.main", "--logdir", *(session.posargs or ["traces"]))


@nox.session(python=False, default=False)
def edge(session: nox.Session) -> None:
    """Compile llama.cpp's bindings (minutes, once) and test the edge track with them."""
    install(session)
    session.env.setdefault("CMAKE_ARGS", "-DLLAVA_BUILD=OFF")  # no pictures: half of the time
    python(session, "-m", "pip", "install", "--quiet", *CONSTRAINTS, "-e", ".[edge]")
    python(session, "-m", "pytest", "tests/models/edge_llm", *session.posargs)


@nox.session(python=False, default=False)
def edge_pairs(session: nox.Session) -> None:
    """Two runtimes of the edge track in pairs of fresh processes: nox -s edge_pairs -- A B --case SLUG."""
    python(session, "tests/edge_pairs.py", *session.posargs)


@nox.session(python=False, default=False)
def arm64(session: nox.Session) -> None:
    """Run the edge track and the agent in an emulated 64-bit Arm board (root, qemu; an hour)."""
    install(session)
    python(session, "tests/arm64_session.py", *session.posargs)


@nox.session(python=False, default=False)
def agent_faults(session: nox.Session) -> None:
    """Kill, starve and cut off the agent, forge its deliveries, and count the results (root)."""
    install(session)
    python(session, "tests/agent_faults.py", *session.posargs)


@nox.session(python=False, default=False)
def gpu(session: nox.Session) -> None:
    """On a host with a GPU: gate, measurements, board and summary into a folder: nox -s gpu -- OUT."""
    install(session)
    python(session, "tests/gpu_session.py", *session.posargs)


@nox.session(python=False, default=False)
def board(session: nox.Session) -> None:
    """Render the leaderboard from the results that are there."""
    install(session)
    python(session, "-m", "archbench", "board")


@nox.session(python=False, default=False)
def dev(session: nox.Session) -> None:
    """Make .dev/archbench, a tree of links that editors and type checkers understand."""
    root = Path(__file__).parent
    tree = root / ".dev" / "archbench"
    tree.mkdir(parents=True, exist_ok=True)
    rooms = {name: root / name for name in ("hardware", "kernels", "models", "reports")}
    files = {path.name: path for path in (root / "src" / "archbench").iterdir() if path.name != "__pycache__"}
    for name, target in (files | rooms).items():
        link = tree / name
        if not link.is_symlink():
            link.symlink_to(target)
    session.log("point your editor at .dev (pyright: extraPaths, mypy: MYPYPATH=.dev)")
