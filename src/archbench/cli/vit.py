"""The verb for networks of the ``vit_int4`` track: ``vit export``."""

from __future__ import annotations

from errno import EISDIR
from os import strerror
from pathlib import Path
from tempfile import TemporaryFile
from typing import Annotated, Any

import typer

from archbench.cli.console import app, err, fail, out, plain
from archbench.track import Contender, Unavailable

vit = typer.Typer(
    help="Networks of the vit_int4 track.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(vit, name="vit")

FORMS = ("int4", "int4_direct", "qcdq")
PACKAGES = "`pip install 'archbench[torch,train,quant]'`"


@vit.callback()
def verbs() -> None:
    """Networks of the vit_int4 track."""


@vit.command()
def export(
    method: Annotated[str, typer.Argument(help="A contender of vit_int4 that is deployed as an ONNX graph.")],
    to: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="Where to write it; a file there is replaced.")],
    case: Annotated[str, typer.Option("--case", help="A case of vit_int4; its first when left out.")] = "",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which of the case's networks.")] = 0,
    form: Annotated[str, typer.Option("--form", help=f"{', '.join(FORMS)}: docs/vit-int4.md.")] = FORMS[0],
) -> None:
    """Train a method's network, where it trains, and write it as an ONNX file. The seed's float network is kept."""
    from archbench.atomic import write_atomically
    from archbench.discovery import UnknownName, load_contender
    from archbench.hardware.detect import detect, place
    from archbench.models.vit_int4 import TRACK

    if form not in FORMS:
        fail(f"no form {form!r}: there are {', '.join(FORMS)}")
    try:
        wanted = TRACK.case(case) if case else TRACK.bench_cases[0]
    except KeyError:
        fail(f"no case {case!r}: there are {', '.join(each.slug for each in TRACK.bench_cases)}")
    try:
        loaded = load_contender(TRACK.name, method)
    except UnknownName as unknown:
        fail(str(unknown))
    if loaded.entry is None:
        fail(f"{method}: {loaded.reason}", 1 if loaded.status == "unsupported" else 2)
    if reason := TRACK.skip(wanted, place(detect(), "cpu")):
        fail(f"{wanted.slug}: {reason}", 1)
    chosen = _built(method, loaded.entry, wanted)
    try:
        _try(to)  # minutes are spent below: a place where nothing can be written says so before
    except OSError as error:
        fail(f"cannot write {to}: {error.strerror}", 1)
    graph = _graph(method, chosen, wanted, seed, form)
    try:
        write_atomically(to, graph)
    except OSError as error:
        fail(f"cannot write {to}: {error.strerror}", 1)
    out.print(f"{to} ({to.stat().st_size / 1e6:,.3f} MB)", highlight=False, soft_wrap=True, markup=False)


def _try(to: Path) -> None:
    """Raises OSError where no file can be made; leaves nothing behind, no folder either."""
    if to.is_dir():
        raise IsADirectoryError(EISDIR, strerror(EISDIR))
    with TemporaryFile(dir=next(folder for folder in to.absolute().parents if folder.exists())):
        pass


def _built(method: str, contender: Contender[Any], case: Any) -> Any:
    """The method for a case. One that is not deployed as a graph is refused."""
    try:
        chosen: Any = contender.build(case)
    except ImportError as error:
        fail(f"needs the package {error.name}: {PACKAGES}", 1)
    except Unavailable as reason:
        fail(str(reason), 1)
    if chosen.runtime != "onnx":
        fail(f"{method} runs in PyTorch: there is no graph of it")
    return chosen


def _graph(method: str, chosen: Any, case: Any, seed: int, form: Any) -> bytes:
    """The ONNX file of a seed's finished network."""
    try:
        from archbench.models.vit_int4._export import export as exported
        from archbench.models.vit_int4._workload import Training

        with err.status(plain(f"making seed {seed} of {method}")):
            graph: bytes = exported(Training(case, chosen).made(seed, "cpu").finished, form).SerializeToString()
        return graph
    except ImportError as error:
        fail(f"needs the package {error.name}: {PACKAGES}", 1)
    except Unavailable as reason:
        fail(str(reason), 1)
    except OSError as error:  # of data, or of the cache it is kept in
        fail(f"cannot make the network: {error.filename}: {error.strerror}", 1)
