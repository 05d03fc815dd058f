"""Datasheet facts of kinds of hardware, one TOML file each in ``profiles/``.

A profile is context, never a limit: the physics gate uses what a host was *measured* to reach.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from archbench.hardware.detect import Host, cpu_name, gpu_name
from archbench.track import Device


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Datasheet of one kind. Rates are dense, without sparsity: operations per second per dtype."""

    id: str
    name: str
    kind: Literal["gpu", "cpu", "board"]
    source: str  # link to the datasheet
    match: str = ""  # regular expression on the machine's hardware name; empty: never matched by name
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None
    matrix_per_s: dict[str, float] = {}
    tdp_w: float | None = None
    note: str = ""


@cache
def profiles() -> dict[str, Profile]:
    """Every profile by id. Raises msgspec.ValidationError for a file that is not one."""
    found = {}
    for file in sorted((files(__package__) / "profiles").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            profile = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Profile)
            found[profile.id] = profile
    return found


def match(host: Host, device: Device) -> Profile | None:
    """The profile of this machine: by its hardware name, else the generic one of its architecture, else None."""
    name = gpu_name(host.gpus[0].name) if device == "cuda" else cpu_name(host)
    for profile in profiles().values():
        if profile.match and re.match(profile.match, name):
            return profile
    generic = device == "cpu" and host.board is None and host.cpu.architecture in ("x86_64", "AMD64")
    return profiles()["generic-x86-cpu"] if generic else None
