"""The verbs for model files of the ``edge_llm`` track: ``edge build`` and ``edge list``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from archbench.cli.console import app, err, fail, out, plain

edge = typer.Typer(
    help="Model files for the edge_llm track.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(edge, name="edge")


@edge.command()
def build(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Names that `archbench edge list` shows.")],
    weights: Annotated[
        list[str] | None,
        typer.Option("--weights", help="A kind of weights; may be repeated. What the cases need when left out."),
    ] = None,
) -> None:
    """Make the files of models. What is there already and whole is left as it is."""
    from archbench.models.edge_llm import WEIGHTS
    from archbench.models.edge_llm import _artefacts as artefacts
    from archbench.models.edge_llm._config import MODELS

    for given, known, what in ((models, MODELS, "model"), (weights or [], WEIGHTS, "kind of weights")):
        for name in given:
            if name not in known:
                fail(f"no {what} {name!r}: there are {', '.join(known)}")
    for model in models:
        for kind in weights or []:
            if reason := artefacts.never(model, kind):
                fail(reason)
        try:
            with err.status(plain(f"making {model}")):
                made = artefacts.build(model, weights or ())
        except ImportError as error:
            fail(f"needs the package {error.name}: `pip install 'archbench[edge]'`", 1)
        except (artefacts.BadArtefact, OSError) as error:
            fail(str(error), 1)
        for path in made:
            size = f"{path.stat().st_size / 1e6:,.1f} MB"
            out.print(f"{path} ({size})", highlight=False, soft_wrap=True, markup=False)


@edge.command("list")
def list_models() -> None:
    """Show the models, where their weights come from, and which files are here."""
    from archbench.models.edge_llm import WEIGHTS
    from archbench.models.edge_llm import _artefacts as artefacts
    from archbench.models.edge_llm._config import MODELS

    out.print(f"model files in {artefacts.folder()}\n", highlight=False, soft_wrap=True, markup=False)
    table = Table(box=None, pad_edge=False)
    for column in ("model", *WEIGHTS):
        table.add_column(column, no_wrap=True)
    for model in MODELS:
        table.add_row(*map(plain, (model, *(_state(model, kind) for kind in WEIGHTS))))
    out.print(table)
    out.print()
    for model, about in MODELS.items():
        out.print(f"{model}: {about.origin}", highlight=False, markup=False)
    out.print("\nnext: archbench edge build MODEL [--weights KIND]", highlight=False, markup=False)


def _state(model: str, kind: str) -> str:
    """What is here of a model in a kind of weights."""
    from archbench.models.edge_llm import _artefacts as artefacts

    path = artefacts.path(model, kind)
    if artefacts.never(model, kind):
        return "never"
    if not path.exists():
        return "on use" if model == artefacts.TINY else "-"
    return f"{path.stat().st_size / 1e6:,.1f} MB" if artefacts.is_whole(path) else "damaged"
