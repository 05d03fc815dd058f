"""What asv is told: its configuration file, which repository that means, and the parameters of a track's suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import archbench
from archbench.discovery import contender_modules
from archbench.harness.repository import Repository
from archbench.names import is_module_name, is_slug
from archbench.track import Track


def settings(configuration: Path) -> dict[str, Any]:
    """asv's configuration as asv reads it: with comments, and its defaults. Raises ValueError."""
    from asv.config import Config
    from asv.util import UserError

    try:
        return {"version": Config.api_version, **vars(Config.load(str(configuration)))}
    except (UserError, ValueError, TypeError) as error:
        raise ValueError(f"{configuration} is not a configuration asv accepts: {error}") from error


def results_dir(configuration: Path) -> Path:
    """Where asv's configuration file says results go. Raises ValueError."""
    return configuration.parent / str(settings(configuration)["results_dir"])


def own_repository(configuration: Path) -> Repository:
    """The repository of a configuration, which must be the one this code is from: its commit names the code measured.

    Raises NoRepository, and ValueError where the code is from elsewhere.
    """
    repository = Repository.containing(configuration.parent)
    code = Path(archbench.__file__).resolve()
    if not repository.tracks(code):
        raise ValueError(
            f"archbench runs from {code.parent}, which is not the checkout {repository.top}: the rows would name a "
            "commit that was not measured; install this checkout (pip install -e .) and use its archbench"
        )
    return repository


def parameters(track: Track[Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Slugs and contenders of a track that can be measured: names that need no quoting in a command.

    Raises ValueError for a slug; a contender's file with another name is left out and ``list`` says why.
    """
    slugs = tuple(case.slug for case in track.bench_cases)
    for slug in slugs:
        if not is_slug(slug):
            raise ValueError(f"track {track.name}: {slug!r} cannot be a case: small letters, digits and . _ + - only")
    return slugs, tuple(filter(is_module_name, contender_modules(track.name)))
