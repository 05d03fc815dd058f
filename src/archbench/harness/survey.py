"""Every contender of a track as its file describes it, imported where it can harm nobody.

A contender's file is foreign code that runs when it is imported: it may exit, hang, print or crash the interpreter.
One child process imports them in turn, so that what they share (torch) is imported once, and reports each as it is
done. A child that dies costs the contender it was at; a new one goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from archbench.cells import ContenderNote, Status
from archbench.discovery import contender_modules, load_contender
from archbench.harness.isolate import Died, reports
from archbench.track import Device

LIMIT_S = 60.0  # for one import: torch from the card of a small board takes half of it


class Description(msgspec.Struct, frozen=True):
    """What importing a contender's file showed."""

    module: str
    status: Status
    reason: str
    device: Device | None
    note: ContenderNote


def describe(track: str, contenders: Sequence[str] | None = None) -> dict[str, Description]:
    """Descriptions by contender (all of the track's when None), none of them imported into this process."""
    modules = contender_modules(track)
    names = list(modules if contenders is None else contenders)
    found: dict[str, Description] = {}
    while len(found) < len(names):
        rest = names[len(found) :]

        def work(send: Callable[[bytes], None], rest: list[str] = rest) -> None:
            for name in rest:
                loaded = load_contender(track, name)
                described = Description(loaded.module, loaded.status, loaded.reason, loaded.device, loaded.note)
                send(msgspec.json.encode(described))

        answers = zip(rest, reports(work, LIMIT_S), strict=False)
        heard = {name: _read(answer, modules[name]) for name, answer in answers}
        found |= heard or {rest[0]: _read(Died("crashed", "no description"), modules[rest[0]])}
    return found


def _read(answer: bytes | Died, module: str) -> Description:
    if isinstance(answer, Died):
        return Description(module, answer.status, f"import failed: {answer.reason}", None, ContenderNote())
    try:
        return msgspec.json.decode(answer, type=Description)
    except msgspec.DecodeError:
        return Description(module, "crashed", "import failed: its description is spoilt", None, ContenderNote())
