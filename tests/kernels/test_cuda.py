"""Building CUDA C++ for contenders without a GPU, and what is asked of the driver when there is one."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from archbench.kernels import cuda
from archbench.track import Unavailable

needs_nvcc = pytest.mark.skipif(
    not any(path.is_file() for path in cuda.candidates()), reason=f"no nvcc: install CUDA or {cuda.PACKAGES}"
)
# A driver that writes down what it is asked.
DRIVER = """
#include <cstdio>
#include <cstring>
extern "C" {
char said[4096];
static int say(const char* what) { std::strcat(said, what); std::strcat(said, "; "); return 0; }
int cuInit(unsigned) { return say("init"); }
int cuGetErrorName(int code, const char** name) {
    *name = code == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : nullptr;
    return 0;
}
int cuDeviceGet(int* device, int number) { *device = number + 40; return 0; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = (void*)(long)(device + 1); return 0; }
int cuCtxPushCurrent_v2(void* context) { return say(context == (void*)42 ? "push" : "push another"); }
int cuCtxPopCurrent_v2(void**) { return say("pop"); }
int cuModuleLoadData(void** module, const void* image) { *module = (void*)7; return say((const char*)image); }
int cuModuleGetFunction(void** function, void*, const char* name) { *function = (void*)9; return say(name); }
int cuFuncSetAttribute(void*, int attribute, int value) {
    char line[64];
    std::snprintf(line, sizeof line, "attribute %d %d", attribute, value);
    return say(line);
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned bytes, void* stream, void** arguments, void** extra) {
    char line[128];
    std::snprintf(line, sizeof line, "launch %ld %u %u %u %u %u %u %u %ld %d %d", (long)function, gx, gy, gz, bx, by,
                  bz, bytes, (long)stream, **(int**)arguments, extra != nullptr);
    say(line);
    return **(int**)arguments == 13 ? 700 : 0;
}
int cuTensorMapEncodeTiled(unsigned long long* map, int type, unsigned rank, void* address,
                           const unsigned long long* sizes, const unsigned long long* strides, const unsigned* box,
                           const unsigned* steps, int interleave, int swizzle, int promotion, int fill) {
    char line[256];
    const char* form = "map %d %u %ld [%llu %llu %llu] [%llu %llu] [%u %u %u] [%u %u %u] %d %d %d %d %d";
    std::snprintf(line, sizeof line, form, type, rank, (long)address, sizes[0], sizes[1], sizes[2], strides[0],
                  strides[1], box[0], box[1], box[2], steps[0], steps[1], steps[2], interleave, swizzle, promotion,
                  fill, (int)((long)map % 128));
    map[15] = 5;
    return say(line);
}
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "answer" / "_cuda"
    folder.mkdir(parents=True)
    (folder / "answer.cuh").write_text("#define ANSWER 42\n")
    (folder / "answer.cu").write_text('#include <answer.cuh>\nextern "C" __global__ void f(int* x) { *x = ANSWER; }')
    return folder


@needs_nvcc
def test_a_cubin_is_built_once_and_again_when_anything_changes(source: Path) -> None:
    first = cuda.compiled(source, "answer.cu", "sm_80")
    made = first.stat().st_mtime_ns
    assert cuda.compiled(source, "answer.cu", "sm_80") == first
    assert first.stat().st_mtime_ns == made
    assert first.read_bytes().startswith(b"\x7fELF")
    others = {first, cuda.compiled(source, "answer.cu", "sm_90a"), cuda.compiled(source, "answer.cu", "sm_80", ("X",))}
    (source / "answer.cuh").write_text("#define ANSWER 43\n")
    others.add(cuda.compiled(source, "answer.cu", "sm_80"))
    assert sorted(first.parent.iterdir()) == sorted(others)
    assert len(others) == 4


@needs_nvcc
def test_what_does_not_compile_says_why_and_leaves_nothing(source: Path) -> None:
    (source / "answer.cu").write_text("int answer = x;")
    with pytest.raises(RuntimeError, match=r"nvcc failed: .*answer\.cu.*error"):
        cuda.compiled(source, "answer.cu", "sm_80")
    assert list(cuda.folder().iterdir()) == []


def test_nvcc_is_found_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / name / "bin" for name in ("home", "path", "nvidia/cu13", "nvidia/cu12")]
    for place in places:
        place.mkdir(parents=True)
        (place / "nvcc").write_text("")
        (place / "nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    monkeypatch.setattr(cuda, "package_folders", lambda: [tmp_path / "nvidia"])
    for place in places:
        assert cuda.compiler() == place / "nvcc"
        (place / "nvcc").unlink()
    with pytest.raises(Unavailable, match=r"needs nvcc: install CUDA .* package nvidia-cuda-nvcc"):
        cuda.compiler()


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "sm_80"), ((9, 0), "sm_90a"), ((12, 0), "sm_120")])
def test_an_architecture_has_nvccs_name(capability: tuple[int, int], name: str) -> None:
    assert cuda.architecture(capability) == name


def test_without_a_driver_the_contender_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "no-such-library.so")
    with pytest.raises(Unavailable, match="needs NVIDIA's driver"):
        cuda.Driver()


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.Array[ctypes.c_char]]:
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("needs a C++ compiler for a driver that writes down what it is asked")
    (tmp_path / "driver.cpp").write_text(DRIVER)
    library = tmp_path / "driver.so"
    subprocess.run([compiler, "-shared", "-fPIC", tmp_path / "driver.cpp", "-o", library], check=True)
    monkeypatch.setattr(cuda, "LIBRARY", os.fspath(library))
    cuda.driver.cache_clear()
    yield (ctypes.c_char * 4096).in_dll(ctypes.CDLL(os.fspath(library)), "said")
    cuda.driver.cache_clear()


class Argument(ctypes.Structure):
    _fields_ = (("number", ctypes.c_int),)


def test_a_kernel_is_loaded_into_the_primary_context_and_launched(said: ctypes.Array[ctypes.c_char]) -> None:
    module = cuda.Module(b"cubin", 1)
    module.function("small", 128, 1024)
    kernel = module.function("large", 256, 100_000)
    kernel.launch((3, 5), Argument(11), 77)
    assert said.value.decode().split("; ")[:-1] == [
        *("init", "push", "cubin", "pop", "small", "large", "attribute 8 100000"),
        "launch 9 3 5 1 256 1 1 100000 77 11 0",
    ]
    with pytest.raises(RuntimeError, match="cuLaunchKernel: CUDA_ERROR_ILLEGAL_ADDRESS"):
        kernel.launch((1, 1), Argument(13), 0)


def test_a_tensor_map_describes_rows_of_16_bits(said: ctypes.Array[ctypes.c_char]) -> None:
    encoded = cuda.tensor_map(4096, (6, 1000, 128), 192)
    assert encoded[15] == 5
    assert said.value.decode() == ("init; map 1 3 4096 [128 1000 6] [256 256000] [64 192 1] [1 1 1] 0 3 3 0 0; ")
