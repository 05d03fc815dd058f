"""The house: import direction, no torch in the base, importing does nothing, one suite per track."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "archbench": ROOT / "src" / "archbench",
    "archbench.hardware": ROOT / "hardware",
    "archbench.kernels": ROOT / "kernels",
    "archbench.models": ROOT / "models",
    "archbench.reports": ROOT / "reports",
    "benchmarks": ROOT / "benchmarks",
}
VOCABULARY = "vocabulary"
# Which rooms a room may import. The command line is the top of the house and may import every room but tests.
ALLOWED = {
    VOCABULARY: {VOCABULARY},
    "hardware": {VOCABULARY, "hardware"},
    "kernels": {VOCABULARY, "hardware", "kernels"},
    "models": {VOCABULARY, "hardware", "kernels", "models"},
    "reports": {VOCABULARY, "reports"},
    "harness": {VOCABULARY, "hardware", "harness"},
    "benchmarks": {VOCABULARY, "harness"},
    "cli": {VOCABULARY, "hardware", "harness", "models", "reports", "cli"},
}


def module_name(package: str, folder: Path, path: Path) -> str:
    parts = path.relative_to(folder).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


def sources() -> dict[str, Path]:
    return {
        module_name(package, folder, path): path
        for package, folder in FOLDERS.items()
        for path in sorted(folder.rglob("*.py"))
        if "site" not in path.parts and "results" not in path.parts
    }


def room(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "benchmarks":
        return "benchmarks"
    if len(parts) > 1 and parts[1] in ("hardware", "kernels", "models", "reports", "harness", "cli"):
        return parts[1]
    return "cli" if module == "archbench.__main__" else VOCABULARY


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "archbench"}
    return found


def test_every_import_follows_the_direction_of_the_house() -> None:
    wrong = [
        f"{module} imports {target}"
        for module, path in sources().items()
        for target in imports(path)
        if target.split(".")[0] in ("archbench", "benchmarks", "tests") and room(target) not in ALLOWED[room(module)]
    ]
    assert wrong == []


def test_bare_room_names_are_never_imported() -> None:
    rooms = {"kernels", "models", "hardware", "reports"}
    wrong = [m for m, path in sources().items() if {t.split(".")[0] for t in imports(path)} & rooms]
    assert wrong == []


def test_a_contender_imports_no_sibling_contender() -> None:
    wrong = []
    for module, path in sources().items():
        parts = module.split(".")
        if room(module) in ("kernels", "models") and len(parts) == 4 and not parts[3].startswith("_"):
            package = ".".join(parts[:3])
            for target in imports(path):
                head = target.removeprefix(package + ".").split(".")[0]
                if target.startswith(package + ".") and not head.startswith("_"):
                    wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_the_base_needs_no_torch() -> None:
    code = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
from archbench import cli, discovery
import archbench.harness.suite, archbench.harness.front, archbench.hardware.report
import archbench.hardware.agent.worker, archbench.hardware.agent.status, archbench.hardware.agent.init
import archbench.reports.site, archbench.reports.export, archbench.reports.serve
for track in discovery.track_modules():
    for contender in discovery.contender_modules(track):
        loaded = discovery.load_contender(track, contender)
        assert loaded.status == "ok" or loaded.reason.startswith("needs the package"), loaded
assert not {"torch", "triton"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT / "tests")
    assert done.returncode == 0, done.stderr


def test_every_track_has_one_suite_named_after_it() -> None:
    from archbench.discovery import track_modules

    suites = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem != "__init__"}
    assert suites == set(track_modules())


def test_files_stay_below_400_lines() -> None:
    long = {m: n for m, path in sources().items() if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400}
    assert long == {}


def test_no_tracked_file_holds_the_path_of_this_checkout() -> None:
    done = subprocess.run(["git", "grep", "-lF", f"{ROOT}/"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == ""
