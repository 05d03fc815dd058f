"""C++ of contenders for a Raspberry Pi's processors, run here under an emulator."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from archbench.hardware import native

ARMS = {"a Raspberry Pi 5": "-march=armv8.2-a+dotprod", "a Pi 4": "-march=armv8-a"}  # dot products, and without


def emulated(source: Path, flag: str, program: Path, *includes: Path) -> list[str]:
    """The command that runs a source, compiled for the processor that ``flag`` names. Skips where there is no tool."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("needs the Debian packages g++-aarch64-linux-gnu and qemu-user-static")
    flags = [given for given in native.FLAGS if given not in ("-fPIC", "-shared")]
    flags += ["-static", flag, *(f"-I{folder}" for folder in includes)]
    subprocess.run([compiler, *flags, str(source), "-o", str(program)], check=True, capture_output=True)
    return [emulator, "-cpu", "max", str(program)]
