"""llama-bench of llama.cpp: ``llama-bench -o json`` and ``-o jsonl``.

A case is what was asked (``pp512``: a prompt of 512 tokens, ``tg128``: 128 generated ones), a contender the model with
the settings it ran under. llama-bench reports tokens a second; the board keeps seconds a token, because lower is better
everywhere on it.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/llama-bench
"""

from __future__ import annotations

from pathlib import PureWindowsPath

import msgspec

from archbench.cells import Cell, ContenderNote, Metric, Scalar, TrackNote
from archbench.reports.imports.measured import NO_COMMIT, Measured, median_seconds
from archbench.reports.load import Unreadable, read_json
from archbench.reports.meaning import is_commit

TRACK = "llama_bench"
FLASH_OFF = (False, 0, "0", "off")
FLASH_AUTO = (-1, "-1", "auto")
NOTES = (
    "Imported from llama-bench (llama.cpp). Times are seconds a token: the median of the repetitions, with its "
    "interval where there are six or more. Nothing in it is paired with a baseline, so nothing is ranked."
)


class Test(msgspec.Struct, frozen=True):
    """One entry; fields of newer versions that are not listed here are left alone."""

    model_type: str
    n_prompt: int
    n_gen: int
    test_time: str
    avg_ns: float
    samples_ns: list[float] = []
    n_depth: int = 0
    build_commit: str = ""
    build_number: int = 0
    cpu_info: str = ""
    gpu_info: str = ""
    backends: str = ""
    model_filename: str = ""
    model_size: int = 0
    model_n_params: int = 0
    n_threads: int = 0
    n_gpu_layers: int = 0
    n_batch: int = 2048
    n_ubatch: int = 512
    type_k: str = "f16"
    type_v: str = "f16"
    flash_attn: bool | int | str = False
    use_mmap: bool | int = True  # of versions before load_mode
    load_mode: str = ""  # "auto", "none", "mmap", "mlock" ...
    repack: bool | int = True

    @property
    def case(self) -> str:
        asked = [f"{kind}{n}" for kind, n in (("pp", self.n_prompt), ("tg", self.n_gen)) if n]
        return "+".join(asked) + (f"@{self.n_depth}" if self.n_depth else "")

    @property
    def contender(self) -> str:
        """The model and every setting that changes its speed, those at llama-bench's default left out."""
        parts = [self.model_type, self.backends, f"{self.n_threads} threads" if self.n_threads else ""]
        if self.backends not in ("", "CPU", "BLAS"):
            parts.append(f"ngl {self.n_gpu_layers}")
        if (self.type_k, self.type_v) != ("f16", "f16"):
            parts.append(f"kv {self.type_k}/{self.type_v}")
        if (self.n_batch, self.n_ubatch) != (2048, 512):
            parts.append(f"batch {self.n_batch}/{self.n_ubatch}")
        if self.flash_attn in FLASH_OFF:
            # Versions with a load mode have "auto" as their default: "off" was asked for.
            parts.append("no flash attention" if self.load_mode else "")
        elif self.flash_attn not in FLASH_AUTO:
            parts.append("flash attention")
        if not self.use_mmap:
            parts.append("no mmap")
        if self.load_mode not in ("", "auto"):
            parts.append(f"load mode {self.load_mode}")
        if not self.repack:
            parts.append("no repacking")
        return ", ".join(part for part in parts if part)

    @property
    def note(self) -> ContenderNote:
        # The name alone: the path of a model says who measured, not what.
        name = PureWindowsPath(self.model_filename).name
        return ContenderNote(f"{name}, {self.model_n_params} parameters, {self.model_size} bytes", "", "llama.cpp")

    def latency(self) -> Metric:
        """Seconds a token. Raises ValueError."""
        tokens = self.n_prompt + self.n_gen
        if tokens < 1:
            raise ValueError(f"a test of {tokens} tokens")
        if self.samples_ns:
            return median_seconds([ns / 1e9 / tokens for ns in self.samples_ns])
        return Metric(self.avg_ns / 1e9 / tokens, "s")


def read(content: bytes) -> Measured:
    """One build on one machine. Raises Unreadable, msgspec.ValidationError, ValueError."""
    tests = msgspec.convert(_entries(content), list[Test], strict=False)
    if not tests:
        raise Unreadable("no tests in it")
    first = tests[0]
    if any(
        (t.build_commit, t.cpu_info, t.gpu_info) != (first.build_commit, first.cpu_info, first.gpu_info) for t in tests
    ):
        raise ValueError("tests of several builds or machines: import them one file each")
    cells = [
        Cell(
            track=TRACK,
            case=test.case,
            contender=test.contender,
            status="ok",
            baseline="",
            metrics={"latency_s": test.latency()},
            started=test.test_time,
        )
        for test in tests
    ]
    keys = [(cell.case, cell.contender) for cell in cells]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        raise ValueError(f"{twice[1]} at {twice[0]} is there twice: import repeated measurements one file each")
    host: dict[str, Scalar] = {"cpu.model": first.cpu_info, "gpu.0.name": first.gpu_info, "backends": first.backends}
    return Measured(
        track=TrackNote(
            track=TRACK,
            question="How long does llama.cpp take for a token?",
            version="1",
            baseline="",
            cases={t.case: {"n_prompt": t.n_prompt, "n_gen": t.n_gen, "n_depth": t.n_depth} for t in tests},
            contenders={t.contender: t.note for t in tests},
            notes=NOTES,
        ),
        cells=cells,
        started=min(test.test_time for test in tests),
        commit=first.build_commit if is_commit(first.build_commit) else NO_COMMIT,
        host={name: value for name, value in host.items() if value},
        versions={"llama.cpp": f"b{first.build_number}"} if first.build_number else {},
    )


def _entries(content: bytes) -> object:
    """A JSON list, or an object a line. Raises Unreadable."""
    if content.lstrip().startswith(b"["):
        return read_json(content)
    return [read_json(line) for line in content.splitlines() if line.strip()]
