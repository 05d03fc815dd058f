"""Finding tracks and contenders: the file's place is its registration.

Tracks are the packages directly inside the rooms. Contenders are the modules of a track's package whose
names do not start with an underscore, and those that installed distributions register under the entry-point
group ``archbench.contenders`` as ``"attention/my_kernel" = "my_package.my_kernel"``.
Finding a contender does not import it; loading one that cannot be imported gives a status, not an error.
Loading runs its file in this process: ``archbench.harness.survey`` does it where nothing can be harmed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from archbench.cells import ContenderNote, Status
from archbench.names import is_module_name, unknown
from archbench.reasons import short, told
from archbench.track import Contender, Device, Track

ROOMS = ("archbench.kernels", "archbench.models")
ENTRY_POINTS = "archbench.contenders"


class UnknownName(ValueError):
    """A track, contender or case nobody knows; the message suggests the nearest one."""


@dataclass(frozen=True)
class Loaded:
    """A contender's module after import: the contender, or why there is none."""

    track: str
    contender: str
    module: str
    entry: Contender[Any] | None
    status: Status
    reason: str
    note: ContenderNote

    @property
    def device(self) -> Device | None:
        """The only device it runs on; None: any."""
        return self.entry.device if self.entry else None


@cache
def track_modules() -> dict[str, str]:
    """Track name -> package, in reading order. Raises ValueError when two rooms hold the same name."""
    found: dict[str, str] = {}
    for room in ROOMS:
        try:
            spec = importlib.util.find_spec(room)
        except ModuleNotFoundError:
            continue
        if spec is None or spec.submodule_search_locations is None:
            continue
        for info in sorted(pkgutil.iter_modules(spec.submodule_search_locations), key=lambda i: i.name):
            if info.ispkg and not info.name.startswith("_"):
                if info.name in found:
                    raise ValueError(f"two tracks are named {info.name!r}: {found[info.name]} and {room}.{info.name}")
                found[info.name] = f"{room}.{info.name}"
    return found


def load_track(name: str) -> Track[Any]:
    """The track of this name. Raises UnknownName."""
    modules = track_modules()
    if name not in modules:
        raise UnknownName(unknown("track", name, modules))
    track: Track[Any] = importlib.import_module(modules[name]).TRACK
    if track.name != name:
        raise ValueError(f"{modules[name]}.TRACK is named {track.name!r}; the folder says {name!r}")
    return track


def contender_modules(track: str) -> dict[str, str]:
    """Contender id -> module, sorted. Nothing is imported but the track's package. Raises UnknownName."""
    load_track(track)
    package = importlib.import_module(track_modules()[track])
    found = {
        info.name: f"{package.__name__}.{info.name}"
        for info in pkgutil.iter_modules(package.__path__)
        if not info.name.startswith("_")
    }
    for point in entry_points(group=ENTRY_POINTS):
        owner, _, contender = point.name.partition("/")
        if owner != track or not contender:
            continue
        if contender in found:
            raise ValueError(f"{point.value} registers {point.name!r}, which {found[contender]} already is")
        found[contender] = point.value
    return dict(sorted(found.items()))


def load_contender(track: str, contender: str) -> Loaded:
    """Import one contender. Raises UnknownName; every failure of the file itself becomes a status."""
    modules = contender_modules(track)
    if contender not in modules:
        raise UnknownName(unknown(f"contender of {track}", contender, modules))
    module_name = modules[contender]

    def failed(status: Status, reason: str) -> Loaded:
        return Loaded(track, contender, module_name, None, status, short(reason), ContenderNote())

    if not is_module_name(contender):
        return failed("crashed", "the file's name is not a Python module name: letters, digits and _ only")
    try:
        module = importlib.import_module(module_name)
        entry = module.CONTENDER
    except ModuleNotFoundError as error:
        if error.name is not None and not error.name.startswith("archbench"):
            return failed("unsupported", f"needs the package {error.name.partition('.')[0]}")
        return failed("crashed", f"import failed: {error}")
    except BaseException as error:  # noqa: BLE001 - foreign code: whatever it raises, SystemExit too, the others go on
        return failed("crashed", f"import failed: {told(error)}")
    if type(entry) is not Contender:
        return failed("crashed", f"CONTENDER is a {type(entry).__name__}, not a Contender")
    doc = inspect.getdoc(module) or ""
    source = re.search(r"^Source:\s*(.+)$", doc, re.MULTILINE)
    note = ContenderNote(
        summary=short(doc.partition("\n")[0]),
        source=short(source[1]) if source else "",
        family=short(entry.family),
        differs=entry.differs and short(entry.differs),
    )
    return Loaded(track, contender, module_name, entry, "ok", "", note)


def select(targets: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """``("attention", "norm/triton")`` -> contender ids by track; every track when empty. Raises UnknownName."""
    chosen: dict[str, set[str]] = {}
    for target in targets or tuple(track_modules()):
        track, _, contender = target.partition("/")
        known = contender_modules(track)
        if contender and contender not in known:
            raise UnknownName(unknown(f"contender of {track}", contender, known))
        chosen.setdefault(track, set()).update([contender] if contender else known)
    return {track: tuple(sorted(names)) for track, names in chosen.items()}
