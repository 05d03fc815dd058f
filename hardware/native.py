"""C++ of contenders and of the ceilings: compiled for this machine, once, and kept.

A library is made of all ``*.cpp`` of a folder and named by the digest of everything in the folder and in those it
includes headers of, the flags and what the compiler says of this processor, so an edited source, another compiler or
another machine in a shared home directory gets its own.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
import shutil
import subprocess
from functools import cache
from pathlib import Path

from archbench.track import Unavailable

FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast", "-fopenmp")
COMPILERS = ("c++", "g++", "clang++")


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench" / "native"


@cache
def load(sources: Path, *shared: Path) -> ctypes.CDLL:
    """The library of a folder of C++, built where it is not there yet; ``shared`` folders have headers it includes.

    Import torch before: the library then shares its OpenMP runtime, and with it threads and their number.
    Raises Unavailable where there is no compiler or it knows no OpenMP, RuntimeError where the source does not compile.
    """
    return ctypes.CDLL(str(build(sources, shared=shared)))


def build(sources: Path, extra: tuple[str, ...] = (), shared: tuple[Path, ...] = ()) -> Path:
    """Compile a folder with ``FLAGS`` and ``extra`` for this processor; the library's path. Raises as ``load``."""
    compiler = _compiler()
    target = _target(compiler)
    files = [
        path for place in (sources, *shared) for path in sorted(place.iterdir()) if path.suffix in (".cpp", ".hpp")
    ]
    parts = [part for path in files for part in (path.name.encode(), path.read_bytes())]
    parts += [*map(str.encode, (*FLAGS, *extra, target)), _macros(compiler, target)]
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()
    path = folder() / f"{sources.parent.name}-{digest}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            units = [str(path) for path in files if path.suffix == ".cpp" and path.parent == sources]
            includes = [f"-I{place}" for place in shared]
            _run(compiler, *FLAGS, target, *extra, *includes, *units, "-o", str(staged))
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
    return path


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), *COMPILERS):
        if name and (found := shutil.which(name)):
            return found
    raise Unavailable("needs a C++ compiler (c++, g++ or clang++; CXX names another)")


def _target(compiler: str) -> str:
    """How this compiler is told to use all of this processor."""
    for flag in ("-march=native", "-mcpu=native"):
        if subprocess.run([compiler, flag, "-E", "-x", "c++", os.devnull], capture_output=True).returncode == 0:
            return flag
    return "-O3"


def _macros(compiler: str, target: str) -> bytes:
    """What the compiler predefines: its version and the instruction sets it will use."""
    done = subprocess.run([compiler, target, "-dM", "-E", "-x", "c++", os.devnull], capture_output=True)
    return done.stdout


def _run(compiler: str, *arguments: str) -> None:
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True)
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
        if "fopenmp" in first or "omp.h" in first:
            raise Unavailable(f"needs a C++ compiler with OpenMP; {Path(compiler).name} has none")
        raise RuntimeError(f"{Path(compiler).name} failed: {first}")
