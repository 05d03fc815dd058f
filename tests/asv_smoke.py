"""Take asv through check, run, continuous, compare and publish on one small cell, in a clone of this repository.

A script, not a test: it builds one environment per commit with torch in it. CI runs it through ``nox -s asv_smoke``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from working_copy import link_packages

ROOT = Path(__file__).resolve().parent.parent
CASE, CONTENDER = "b1-h4-len128-d64-fp32-fwd", "naive"
BENCH = rf"attention.*\('{CASE}', '{CONTENDER}'\)"
PROBLEM_EXIT = 2  # asv's "a benchmark failed" or "something got slower"


def run(*command: str, cwd: Path, home: Path, allowed: tuple[int, ...] = (0,), packages: Path | None = None) -> str:
    """Run a command without a terminal, as an unattended machine does; anything unexpected ends the script."""
    print("$", *command, flush=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ASV_", "ARCHBENCH_"))}
    environment |= {"HOME": str(home), "GIT_CONFIG_GLOBAL": str(home / "gitconfig")}
    environment.setdefault("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    if packages is not None:  # asv drops PYTHONPATH and takes its own variable instead
        environment |= {"PYTHONPATH": str(packages), "ASV_PYTHONPATH": str(packages)}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode not in allowed:
        sys.exit(f"{done.stdout[-6000:]}\nexit code {done.returncode}")
    return done.stdout


def values(results: Path, metric: str) -> list[float]:
    """Every finite number asv itself recorded for a metric of our cell."""
    found = []
    for path in results.glob("*/*.json"):
        if path.name == "machine.json":
            continue
        data = json.loads(path.read_text())
        row = data["results"].get(f"attention.Attention.{metric}")
        found += [v for v in (row[0] or []) if isinstance(v, float) and v == v] if row else []
    return found


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="archbench-asv-") as scratch:
        home, clone = Path(scratch) / "home", Path(scratch) / "clone"
        home.mkdir()
        (home / "gitconfig").write_text("[user]\n\tname = smoke\n\temail = smoke@example.org\n")
        run("git", "clone", "-q", str(ROOT), str(clone), cwd=ROOT, home=home)
        run("git", "checkout", "-q", "-B", "main", cwd=clone, home=home)
        subprocess.run(["rm", "-rf", str(clone / "reports" / "results")], check=True)
        run("git", "commit", "-q", "--allow-empty", "-m", "a second commit", cwd=clone, home=home)
        asv = (sys.executable, "-m", "asv")
        run(sys.executable, "-m", "archbench", "machine", cwd=clone, home=home)
        run(*asv, "check", "-E", f"existing:{sys.executable}", cwd=clone, home=home)
        results = clone / "reports" / "results"
        existing = ("-E", f"existing:{sys.executable}", "--set-commit-hash", "HEAD")
        # The current environment holds the code of this checkout; rows of the clone are of the clone's code.
        packages = Path(scratch) / "packages"
        link_packages(clone, packages)
        print(run(*asv, "run", *existing, "--bench", BENCH, cwd=clone, home=home, packages=packages)[-1500:])
        assert len(values(results, "track_latency")) == 1, "asv did not store the latency"
        print(run(*asv, "continuous", "HEAD~1", "HEAD", "--bench", BENCH, cwd=clone, home=home, allowed=(0, 1))[-1500:])
        for metric in ("track_latency", "track_slowdown", "track_peak_bytes"):
            assert len(values(results, metric)) == 3, f"{metric}: {values(results, metric)}"
        print(run(*asv, "compare", "HEAD~1", "HEAD", cwd=clone, home=home)[-1500:])
        run(*asv, "publish", cwd=clone, home=home)
        assert (clone / ".asv" / "html" / "index.html").is_file()
        rows = json.loads(run(sys.executable, "-m", "archbench", "export", cwd=clone, home=home))["rows"]
        assert {row["status"] for row in rows} == {"ok"}, rows
        assert len({row["commit"] for row in rows}) == 2
        print(f"asv: {len(rows)} rows from two commits")


if __name__ == "__main__":
    main()
