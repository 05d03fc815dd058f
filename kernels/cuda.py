"""CUDA C++ of contenders: compiled for a GPU, once, and kept; loaded and launched through the driver.

``compiled`` runs nvcc and keeps the cubin by the digest of everything in the folder, the flags and what the compiler
says of itself, so an edited source or another compiler gets its own. ``Module`` is the small part of the driver's
interface that a launch needs, through ctypes: no extension is built against torch, and compiling needs no GPU.

Source: CUDA driver API, module management and execution control
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from archbench.track import Unavailable

FLAGS = ("-cubin", "-std=c++17", "-O3")
PACKAGES = "nvidia-cuda-nvcc"  # brings nvidia-cuda-crt, nvidia-cuda-runtime and nvidia-nvvm
LIBRARY = "libcuda.so.1"

# Values of the enumerations in cuda.h.
MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
UINT16, INTERLEAVE_NONE, SWIZZLE_128B, L2_PROMOTION_256B, FILL_WITH_ZEROS = 1, 0, 3, 3, 0  # CU_TENSOR_MAP_*


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "archbench" / "cuda"


def architecture(capability: tuple[int, int]) -> str:
    """What nvcc calls a compute capability; Hopper's with the instructions only it has."""
    return f"sm_{capability[0]}{capability[1]}" + ("a" if capability == (9, 0) else "")


def compiler() -> Path:
    """nvcc of CUDA_HOME, of PATH, or of the package in this environment. Raises Unavailable where there is none."""
    for path in candidates():
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise Unavailable(f"needs nvcc: install CUDA (CUDA_HOME names it) or the package {PACKAGES}")


def candidates() -> Iterator[Path]:
    """Where nvcc may be, the first to be preferred; of several releases of the package the newest."""
    if home := os.environ.get("CUDA_HOME"):
        yield Path(home) / "bin" / "nvcc"
    if found := shutil.which("nvcc"):
        yield Path(found)
    for place in package_folders():
        yield from sorted(place.glob("cu[0-9]*/bin/nvcc"), reverse=True)


def package_folders() -> list[Path]:
    """Where NVIDIA's packages put their files."""
    spec = importlib.util.find_spec("nvidia")
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def compiled(sources: Path, unit: str, target: str, defines: tuple[str, ...] = ()) -> Path:
    """Compile ``unit`` of a folder for an architecture; the cubin's path.

    Raises Unavailable where there is no nvcc, RuntimeError where the source does not compile.
    """
    nvcc = compiler()
    options = (*FLAGS, f"-arch={target}", *(f"-D{define}" for define in defines))
    files = sorted(path for path in sources.iterdir() if path.suffix in (".cu", ".cuh"))
    parts = [part for path in files for part in (path.name.encode(), path.read_bytes())]
    parts += [*map(str.encode, (unit, *options)), _version(nvcc)]
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=12).hexdigest()
    path = folder() / f"{sources.parent.name}-{Path(unit).stem}-{target}-{digest}.cubin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            _run(nvcc, *options, f"-I{sources}", str(sources / unit), "-o", str(staged))
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
    return path


@cache
def _version(nvcc: Path) -> bytes:
    return subprocess.run([nvcc, "--version"], capture_output=True, check=True).stdout


def _run(nvcc: Path, *arguments: str) -> None:
    done = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr + done.stdout).splitlines()
        raise RuntimeError(f"nvcc failed: {next((line for line in told if 'error' in line), 'no message')}")


class Driver:
    """The CUDA driver, its errors raised as RuntimeError by name. Raises Unavailable where there is none."""

    def __init__(self) -> None:
        try:
            self.library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise Unavailable(f"needs NVIDIA's driver: {error}") from error
        pointer = ctypes.c_void_p
        self.library.cuLaunchKernel.argtypes = [pointer, *[ctypes.c_uint] * 7, pointer, pointer, pointer]
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver; anything but success raises."""
        self.check(name, getattr(self.library, name)(*arguments))

    def check(self, name: str, code: int) -> None:
        if code:
            said = ctypes.c_char_p()
            self.library.cuGetErrorName(code, ctypes.byref(said))
            raise RuntimeError(f"{name}: {said.value.decode() if said.value else f'error {code}'}")


@cache
def driver() -> Driver:
    return Driver()


def tensor_map(address: int, sizes: tuple[int, int, int], box_rows: int) -> ctypes.Array:
    """Hopper's description of [heads, rows, columns] of 16 bits, in boxes of 64 columns; zeros beyond the end."""
    storage = (ctypes.c_uint64 * 32)()  # the map is 128 bytes at a multiple of 128
    encoded = (ctypes.c_uint64 * 16).from_buffer(storage, -ctypes.addressof(storage) % 128)
    heads, rows, columns = sizes
    driver().call(
        "cuTensorMapEncodeTiled",
        ctypes.byref(encoded),
        UINT16,
        3,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 3)(columns, rows, heads),
        (ctypes.c_uint64 * 2)(columns * 2, rows * columns * 2),
        (ctypes.c_uint32 * 3)(64, box_rows, 1),
        (ctypes.c_uint32 * 3)(1, 1, 1),
        INTERLEAVE_NONE,
        SWIZZLE_128B,
        L2_PROMOTION_256B,
        FILL_WITH_ZEROS,
    )
    return encoded


class Function:
    """A kernel of a loaded module, with the shared memory it is launched with."""

    def __init__(self, handle: ctypes.c_void_p, threads: int, shared_bytes: int) -> None:
        self.driver = driver()
        self.handle, self.threads, self.shared_bytes = handle, threads, shared_bytes
        if shared_bytes > 48 * 1024:  # more than every GPU grants without being asked
            self.driver.call("cuFuncSetAttribute", handle, MAX_DYNAMIC_SHARED, shared_bytes)

    def launch(self, grid: tuple[int, int], argument: ctypes.Structure, stream: int) -> None:
        """Queue the kernel with one argument, which is copied, on a stream of the current context."""
        arguments = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
        code = self.driver.library.cuLaunchKernel(
            self.handle, *grid, 1, self.threads, 1, 1, self.shared_bytes, stream, arguments, None
        )
        self.driver.check("cuLaunchKernel", code)


class Module:
    """A cubin in the primary context of a device, the one torch uses."""

    def __init__(self, cubin: bytes, device: int) -> None:
        self.driver, self.handle, place, context = driver(), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_void_p()
        self.driver.call("cuDeviceGet", ctypes.byref(place), device)
        self.driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), place)
        self.driver.call("cuCtxPushCurrent_v2", context)
        try:
            self.driver.call("cuModuleLoadData", ctypes.byref(self.handle), cubin)
        finally:
            self.driver.call("cuCtxPopCurrent_v2", ctypes.byref(context))

    def function(self, name: str, threads: int, shared_bytes: int) -> Function:
        """The kernel ``name``. Raises RuntimeError where there is none, or it cannot have that much shared memory."""
        handle = ctypes.c_void_p()
        self.driver.call("cuModuleGetFunction", ctypes.byref(handle), self.handle, name.encode())
        return Function(handle, threads, shared_bytes)
