"""Ceilings: buffers, the cache of a boot, the rates themselves, and what they are compared with."""

from __future__ import annotations

import ctypes
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from archbench.cells import Ceiling
from archbench.hardware import ceilings as module
from archbench.hardware import native
from archbench.hardware.ceilings import bandwidth_note, buffer_bytes, ceilings
from archbench.hardware.cpu import Cpu
from archbench.hardware.detect import Host
from archbench.hardware.gpu import Gpu
from archbench.track import Unavailable


@pytest.fixture
def host() -> Host:
    cpu = Cpu(
        model="x", vendor="amd", architecture="x86_64", microarchitecture="zen4", cores=2, cores_total=2, isa=("AVX2",)
    )
    gpu = Gpu(name="NVIDIA H100 80GB HBM3", uuid="GPU-0", card_uuid="GPU-0", driver="580")
    return Host(cpu=cpu, memory_bytes=1 << 34, gpus=(gpu,))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that show the shape of the result, not the machine."""
    monkeypatch.setattr(module, "buffer_bytes", lambda cache, available: 8 << 20)
    monkeypatch.setattr(module, "GPU_BUFFER_BYTES", 8 << 20)
    monkeypatch.setattr(module, "CPU_MATRIX_SIZES", (64, 128))
    monkeypatch.setattr(module, "GPU_MATRIX_SIZES", (64, 128))
    monkeypatch.setattr(module, "CPU_WINDOW_S", 0.0)
    monkeypatch.setattr(module, "GPU_WINDOW_S", 0.0)


def test_buffers_exceed_four_caches_but_never_a_quarter_of_the_free_memory() -> None:
    assert buffer_bytes(32 << 20, 64 << 30) > 4 * (32 << 20)
    assert buffer_bytes(1 << 20, 64 << 30) == 64 << 20
    assert buffer_bytes(480 << 20, 4 << 30) == 1 << 30


def test_a_control_groups_memory_bounds_the_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: SimpleNamespace(available=8 << 30))
    monkeypatch.setattr(module, "memory_free", lambda: 1 << 30)
    assert module.available_bytes() == 1 << 30
    monkeypatch.setattr(module, "memory_free", lambda: None)
    assert module.available_bytes() == 8 << 30


@pytest.mark.parametrize(
    ("cache", "available", "words"),
    [
        (32 << 20, 8 << 30, "129 MiB: over 4 x the last-level caches"),
        (480 << 20, 4 << 30, "1024 MiB, bounded by a quarter of the free memory: 2.1 x the last-level caches, not 4 x"),
        (0, 8 << 30, "64 MiB; no cache size is reported here"),
    ],
)
def test_bounded_buffers_are_told(
    host: Host, monkeypatch: pytest.MonkeyPatch, cache: int, available: int, words: str
) -> None:
    monkeypatch.setattr(module, "available_bytes", lambda: available)
    seen = msgspec.structs.replace(host, cpu=msgspec.structs.replace(host.cpu, last_level_bytes=cache))
    assert bandwidth_note(seen).endswith(words)


def test_ceilings_are_measured_once_per_boot_and_stamped(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measured(*_: object) -> list[Ceiling]:
        asked.append(1)
        return [Ceiling("copy", 1e9, "B/s", threads=1)]

    def again(host: Host = host, **changed: Any) -> list[Ceiling]:
        options: dict[str, Any] = {"dtypes": ("fp32",), "threads": (1,), "cache_dir": tmp_path}
        return ceilings(host, "cpu", **(options | changed))

    monkeypatch.setattr(module, "_cpu", measured)
    first = again()
    assert first[0].measured.startswith("20")
    assert again() == first
    assert len(asked) == 1
    again(refresh=True)
    next(tmp_path.glob("*.json")).write_text("{")  # unreadable
    again()
    again(threads=(1, 2))
    again(dtypes=("bf16",))
    again(msgspec.structs.replace(host, cpu=msgspec.structs.replace(host.cpu, cores=1)))
    monkeypatch.setattr(module, "version", lambda package: "0.1")
    again()
    monkeypatch.setattr(module, "boot_id", lambda: "another boot")
    again()
    assert len(asked) == 8
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".json"]


def test_a_home_that_cannot_be_written_still_has_ceilings(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_cpu", lambda *_: [Ceiling("copy", 1e9, "B/s", threads=1)])
    (tmp_path / "file").touch()
    found = ceilings(host, "cpu", dtypes=(), threads=(1,), cache_dir=tmp_path / "file" / "folder")
    assert [c.value for c in found] == [1e9]


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / "archbench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert module.cache_folder() == tmp_path / ".cache" / "archbench"


@pytest.mark.usefixtures("small")
def test_a_cpu_has_bandwidth_and_rates_per_thread_count(host: Host, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the matrix rate is torch's")
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    found = ceilings(host, "cpu", dtypes=("fp64", "fp32", "bf16", "tf32"), threads=(1, 2), cache_dir=tmp_path)
    kinds = [("copy", None), ("read", None), ("matrix", "fp64"), ("matrix", "fp32"), ("matrix", "bf16")]
    assert {(c.name, c.dtype, c.threads) for c in found} == {(*kind, n) for kind in kinds for n in (1, 2)}
    assert all(1e6 < c.value < 1e15 for c in found)
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


def test_more_threads_never_have_a_lower_ceiling() -> None:
    found = [
        Ceiling("matrix", 5.0, "op/s", threads=1, dtype="int8"),
        Ceiling("matrix", 3.0, "op/s", threads=2, dtype="int8"),  # a neighbour was busy
        Ceiling("matrix", 6.0, "op/s", threads=1, dtype="bf16"),
        Ceiling("matrix", 9.0, "op/s", threads=2, dtype="bf16"),
        Ceiling("copy", 4.0, "B/s", threads=2),
    ]
    assert [c.value for c in module._raise_to_fewer_threads(found)] == [5.0, 5.0, 6.0, 9.0, 4.0]


def test_a_larger_product_is_not_tried_where_it_would_take_long() -> None:
    torch = pytest.importorskip("torch", reason="the matrix rate is torch's")
    tried: list[int] = []

    def slow(call: Callable[[], Any]) -> float:
        tried.append(call().shape[0])
        return 1e-3 * (tried[-1] / 32) ** 3  # 64 MFLOP/s: an emulated dtype

    (found,) = module._matrix(torch, ("fp32",), "cpu", 1, (32, 64, 512), slow)
    assert tried == [32, 64]
    assert found.value == pytest.approx(2 * 32**3 / 1e-3)


def test_a_dtype_without_a_product_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the matrix rate is torch's")

    def unsupported(*_: Any) -> Any:
        raise RuntimeError("not implemented for 'Char'")

    monkeypatch.setattr(torch, "_int_mm", unsupported)
    found = module._matrix(torch, ("int8", "int4", "fp32"), "cpu", 1, (32,), lambda call: call() is None or 1.0)
    assert [c.dtype for c in found] == ["fp32"]


@pytest.mark.usefixtures("small")
def test_without_torch_numpy_measures(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = ceilings(host, "cpu", dtypes=("fp32", "bf16"), threads=(1, 2), cache_dir=tmp_path)
    assert [(c.name, c.dtype, c.threads) for c in found] == [
        ("copy", None, 1),
        ("read", None, 1),
        ("copy", None, 2),
        ("read", None, 2),
        ("matrix", "fp32", None),
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_reading_loop_reads_everything(threads: int) -> None:
    """One bit anywhere shows; of each thread's part less than 256 bytes at its end are left out."""
    try:
        read = native.load(module.LOOPS).archbench_read
    except Unavailable as reason:
        pytest.skip(str(reason))
    read.restype = ctypes.c_uint64
    lines = 4 * 5 * threads
    memory = np.zeros(lines * 64 + 64, np.uint8)
    start = -memory.ctypes.data % 64
    asked = (ctypes.c_void_p(memory.ctypes.data + start), ctypes.c_int64(lines * 64), threads)
    assert read(*asked) == 0
    for place in range(lines * 64):
        memory[start + place] = 1 << place % 8
        assert read(*asked) != 0, place
        memory[start + place] = 0


@pytest.mark.parametrize("threads", [1, 2])
def test_the_multiplying_loop_multiplies_as_often_as_it_says(threads: int) -> None:
    """After k rounds from j on, with a factor of 1 and a term of 1, every x is j + k."""
    try:
        library = native.load(module.LOOPS)
    except Unavailable as reason:
        pytest.skip(str(reason))
    library.archbench_multiply_add.restype = ctypes.c_float
    library.archbench_multiply_add_operations.restype = ctypes.c_int64
    numbers = library.archbench_multiply_add_operations() // 2
    lanes, chains, rounds = numbers // 12, 12, 100
    found = library.archbench_multiply_add(ctypes.c_int64(rounds), ctypes.c_float(1), ctypes.c_float(1), threads)
    assert found == threads * lanes * (chains * (chains - 1) // 2 + chains * rounds)
    assert module.multiply_add_rate(threads) > 1e8


def test_float32_products_are_bound_by_the_multipliers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a BLAS that a contender may be faster than."""
    monkeypatch.setattr(module, "multiply_add_rate", lambda threads: 7.0 * threads)
    found = [
        Ceiling("matrix", 5.0, "op/s", threads=1, dtype="fp32"),
        Ceiling("matrix", 20.0, "op/s", threads=2, dtype="fp32"),
        Ceiling("matrix", 5.0, "op/s", threads=1, dtype="bf16"),
        Ceiling("matrix", 5.0, "op/s", dtype="fp32"),  # numpy's, with the threads its BLAS takes
        Ceiling("copy", 4.0, "B/s", threads=2),
    ]
    assert [c.value for c in module._raise_to_multipliers(found, 4)] == [7.0, 20.0, 5.0, 28.0, 4.0]


@pytest.mark.usefixtures("small")
def test_a_gpu_is_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="the rates are torch's")
    milliseconds = itertools.cycle([2.0, 1.0, 4.0])
    precisions: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            precisions.append(torch.get_float32_matmul_precision())

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: Event) -> float:
            return next(milliseconds)

    fake = SimpleNamespace(
        Event=Event,
        synchronize=lambda: None,
        empty_cache=lambda: None,
        mem_get_info=lambda: (1 << 30, 1 << 30),
    )
    monkeypatch.setattr(torch, "cuda", fake)
    monkeypatch.setattr(module, "DTYPES", {"fp32", "tf32"})
    before = torch.get_float32_matmul_precision()
    found = {(c.name, c.dtype): c for c in module._cuda(("fp32",), device="cpu")}
    assert found["copy", None].value == pytest.approx(2 * (8 << 20) / 1e-3)  # the best sample, not the mean
    assert found["read", None].value == pytest.approx((8 << 20) / 1e-3)
    assert found["matrix", "fp32"].value == pytest.approx(2 * 128**3 / 1e-3)
    assert all(c.threads is None for c in found.values())
    assert precisions[-1] == "highest"  # fp32 is fp32, whatever the process had set
    assert torch.get_float32_matmul_precision() == before


def test_the_datasheet_stands_beside_the_whole_device_only(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = [
        Ceiling("copy", 2.9e12, "B/s"),
        Ceiling("matrix", 7e14, "op/s", dtype="bf16"),
        Ceiling("matrix", 1e12, "op/s", dtype="int4"),
    ]
    monkeypatch.setattr(module, "_cuda", lambda dtypes: measured)
    found = ceilings(host, "cuda", dtypes=(), threads=(1,), cache_dir=tmp_path)
    assert [c.datasheet for c in found] == [3.35e12, 989.4e12, None]
    from archbench.hardware.profiles import profiles

    pi = profiles()["raspberry-pi-5"]
    assert module._datasheet(Ceiling("copy", 1.0, "B/s", threads=4), pi, "cpu", 4) == 17.07e9
    assert module._datasheet(Ceiling("copy", 1.0, "B/s", threads=1), pi, "cpu", 4) is None
    assert module._datasheet(Ceiling("copy", 1.0, "B/s"), None, "cpu", 4) is None


def huge_kb() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages:"))


def test_streams_lie_in_huge_pages_where_the_kernel_has_them() -> None:
    switch = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not switch.exists() or "[never]" in switch.read_text() or not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this kernel gives no huge pages")
    before = huge_kb()
    kept = module.in_huge_pages(256 << 20)
    assert huge_kb() - before > kept.nbytes / 1024 / 2
