"""An emulated 64-bit Arm board: a Debian root, wheels of the project's requirements, and commands that run in it.

Programs of the root are run by qemu's user mode, which the kernel starts for them. Each command gets namespaces of its
own with the files a Raspberry Pi shows of itself over ``/proc`` and ``/sys``, so that nothing stays mounted.
llama-cpp-python is cross-compiled on this machine and asv is built in the root: PyPI has no wheel of either for Arm
Linux.

Source: https://www.qemu.org/docs/master/user/main.html
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from working_copy import ROOT

RELEASE, PYTHON, MIRROR = "bookworm", "3.11", "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,python3,python3-venv,python3-dev,g++,git,openssh-client,procps"
NEEDED = {
    "qemu-aarch64-static": "qemu-user-static",
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "ssh-keygen": "openssh-client",
}
PLATFORMS = ("manylinux_2_17_aarch64", "manylinux2014_aarch64", "manylinux_2_28_aarch64", "linux_aarch64")
BUILDS_ASV = ("setuptools==80.9.0", "setuptools_scm<9", "packaging", "wheel", "pip")
BINFMT = Path("/proc/sys/fs/binfmt_misc")
HANDLER = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")  # what qemu's package would have the kernel know
LLAMA = {
    "CMAKE_SYSTEM_NAME": "Linux",
    "CMAKE_SYSTEM_PROCESSOR": "aarch64",
    "CMAKE_C_COMPILER": "aarch64-linux-gnu-gcc",
    "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
    "GGML_NATIVE": "OFF",
    "GGML_CPU_ARM_ARCH": "armv8-a",  # what every 64-bit Raspberry Pi can do
    **dict.fromkeys(
        ("LLAVA_BUILD", *(f"LLAMA_BUILD_{part}" for part in ("TOOLS", "EXAMPLES", "TESTS", "SERVER"))), "OFF"
    ),
}
A72 = "fp asimd evtstrm crc32 cpuid"
A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
VCGENCMD = (
    '#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x0 || { [ "$1" = measure_temp ] && echo "temp=48.3\'C"; }\n'
)
ENTER = """set -e; root=$1 files=$2; shift 2
mount -t proc proc "$root/proc"; mount --rbind /dev "$root/dev"; mount --bind "$files/sys" "$root/sys"
mount --bind "$files/cpuinfo" "$root/proc/cpuinfo"; mount --bind "$files/meminfo" "$root/proc/meminfo"
exec chroot "$root" "$@"
"""
PATH = "/venv/bin:/usr/bin:/bin:/usr/sbin:/sbin"


class Failed(RuntimeError):
    """A command that had to succeed did not; the message holds its last lines."""


def run(*command: str | Path, environment: Mapping[str, str] | None = None, cwd: Path = ROOT) -> str:
    """What a command prints. Raises Failed."""
    words = list(map(str, command))
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Failed(f"{' '.join(words)[:300]}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


def missing() -> str | None:
    """Why no board can be emulated here, or None."""
    packages = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if sys.platform != "linux" or os.geteuid() != 0:
        return "needs Linux and root: a root of another architecture is made and entered"
    return f"needs: apt-get install {' '.join(packages)}" if packages else None


@contextmanager
def arm_programs_run() -> Iterator[None]:
    """Have the kernel start qemu for Arm programs, where it does not yet."""
    if not (BINFMT / "register").exists():
        run("mount", "-t", "binfmt_misc", "none", BINFMT)
    if any(entry.name.endswith("aarch64") and "enabled" in entry.read_text() for entry in BINFMT.iterdir()):
        yield
        return
    handler = next(line for line in HANDLER.read_text().splitlines() if line.startswith(":"))
    (BINFMT / "register").write_text(handler)
    try:
        yield
    finally:
        (BINFMT / handler.split(":")[1]).write_text("-1")


@dataclass(frozen=True)
class Model:
    """What a board shows of itself. ``core`` is qemu's name of its processor: others' instructions are refused."""

    name: str  # as archbench calls it
    tree: str  # the model in its device tree; empty: it has none
    part: str
    features: str
    memory_kb: int
    core: str

    def write(self, folder: Path) -> None:
        """Write the board's files."""
        core = f"Features\t: {self.features}\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\n"
        core += f"CPU part\t: {self.part}\nCPU revision\t: 1\n\n"
        kb = self.memory_kb
        memory = {"MemTotal": kb, "MemFree": kb // 2, "MemAvailable": kb // 2, "Buffers": 0, "Cached": 0}
        memory |= dict.fromkeys(("Active", "Inactive", "Shmem", "Slab", "SReclaimable", "SwapTotal", "SwapFree"), 0)
        cores = os.cpu_count() or 1
        files = {
            "cpuinfo": "".join(f"processor\t: {n}\nBogoMIPS\t: 108.00\n{core}" for n in range(cores)),
            "meminfo": "".join(f"{name}: {value:>15} kB\n" for name, value in memory.items()),
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
            "sys/class/thermal/thermal_zone0/temp": "48300\n",
        }
        files |= {"sys/firmware/devicetree/base/model": f"{self.tree}\0"} if self.tree else {}
        files |= {f"sys/devices/system/cpu/{kind}": f"0-{cores - 1}\n" for kind in ("possible", "present", "online")}
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)


PI_5 = Model("raspberry-pi-5-8gb", "Raspberry Pi 5 Model B Rev 1.0", "0xd0b", A76, 8245000, "cortex-a76")
PI_4 = Model("raspberry-pi-4-4gb", "Raspberry Pi 4 Model B Rev 1.4", "0xd08", A72, 3884000, "cortex-a72")


@dataclass(frozen=True)
class Emulated:
    """A root with the project installed in it; commands run in it as on one board."""

    root: Path
    files: Path
    model: Model

    def run(self, *command: str, **variables: str) -> str:
        """What a command of the root prints. Raises Failed."""
        code, said = self.outcome(*command, **variables)
        if code:
            raise Failed(f"on the board: {' '.join(command)[:300]}: exit code {code}\n{said[-4000:]}")
        return said

    def outcome(self, *command: str, **variables: str) -> tuple[int, str]:
        """A command's exit code and all it said."""
        kept = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "QEMU_CPU": self.model.core, **variables}
        enter = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", ENTER, "board", str(self.root))
        words = [*enter, str(self.files), "env", "-C", "/src", *command]
        done = subprocess.run(words, env=kept, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        return done.returncode, done.stdout + done.stderr

    def as_board(self, model: Model) -> Emulated:
        """The same root on another board."""
        files = self.files.with_name(model.name)
        model.write(files)
        return Emulated(self.root, files, model)


def wheels(cache: Path, root: Path) -> Path:
    """A folder of wheels from which the base install and the extra ``edge`` can be installed in the root."""
    folder, constraints = cache / "wheels", ("-c", str(ROOT / "constraints.txt"))
    folder.mkdir(exist_ok=True)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    if not list(folder.glob("llama_cpp_python-*aarch64.whl")):
        flags = " ".join(f"-D{name}={value}" for name, value in LLAMA.items())
        made = cache / "cross"
        shutil.rmtree(made, ignore_errors=True)
        # Not from pip's cache nor into it: it takes the wheel for one of this machine.
        source = ("--no-binary", "llama-cpp-python", "--no-cache-dir", "--no-deps", "llama-cpp-python")
        run(*pip, "wheel", *constraints, *source, "-w", made, environment={**os.environ, "CMAKE_ARGS": flags})
        (wheel,) = made.glob("*.whl")
        os.replace(wheel, folder / re.sub(r"linux_\w+", "linux_aarch64", wheel.name))  # bound by ctypes: any Python
    if not list(folder.glob("asv-*.whl")):
        run(*pip, "download", *constraints, "-d", folder, "--no-deps", "--no-binary", "asv", "asv")
        run(*pip, "download", "-d", folder, "--no-deps", *BUILDS_ASV)
        shutil.copytree(folder, root / "wheels", dirs_exist_ok=True)
        in_root = ("chroot", root, "env", "-i", f"PATH={PATH}", "HOME=/root")
        offline = ("--no-index", "--find-links", "/wheels")
        run(*in_root, "pip", "install", "--quiet", *offline, "wheel", "pip")
        run(*in_root, "pip", "wheel", "--quiet", *offline, "--no-deps", "-w", "/wheels", "asv")
        (wheel,) = (root / "wheels").glob("asv-*.whl")
        shutil.copy(wheel, folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["edge"], "setuptools>=77", "wheel"]
    where = [word for platform in PLATFORMS for word in ("--platform", platform)]
    found = ("--only-binary", ":all:", "--python-version", PYTHON, "--find-links", folder)
    run(*pip, "download", *constraints, "-d", folder, *found, *where, *wanted)
    return folder


def debian(cache: Path, root: Path) -> None:
    """A fresh root with Python, a compiler and git."""
    archive = cache / f"{RELEASE}-arm64.tar"
    if not archive.exists():
        staged = cache / f".{archive.name}"
        options = ("--architectures=arm64", "--variant=minbase", f"--include={PACKAGES}", "--format=tar")
        run("mmdebstrap", *options, RELEASE, staged, MIRROR, environment={**os.environ, "TMPDIR": str(cache)})
        os.replace(staged, archive)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    run("tar", "-xf", archive, "-C", root)
    run("chroot", root, "python3", "-m", "venv", "/venv")
    (root / "usr/bin/vcgencmd").write_text(VCGENCMD)
    (root / "usr/bin/vcgencmd").chmod(0o755)


def install(root: Path, found: Path, tree: Path) -> None:
    """Install the project's tree with the extra ``edge`` from wheels alone, as a board without network would."""
    shutil.copytree(found, root / "wheels", dirs_exist_ok=True)
    shutil.copytree(tree, root / "src")
    in_root = ("chroot", root, "env", "-i", "-C", "/src", f"PATH={PATH}", "HOME=/root")
    options = ("--quiet", "--no-index", "--find-links", "/wheels", "-c", "constraints.txt")
    run(*in_root, "pip", "install", *options, "-e", ".[edge]")
