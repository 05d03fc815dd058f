"""Datasheet facts of kinds of hardware, one TOML file each in ``profiles/``.

A profile is context, never a limit: the physics gate uses what a host was *measured* to reach. A figure the maker does
not print is left out.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec

from archbench.hardware.detect import Host, hardware_name
from archbench.track import Device


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Datasheet of one kind. Rates are dense, without sparsity: operations per second per dtype."""

    id: str  # the file's name
    name: str
    kind: Literal["gpu", "cpu", "board"]
    source: str  # link to the datasheet
    match: str = ""  # regular expression for the whole hardware name; empty: never matched by name
    memory_bytes: int | None = None
    memory_bytes_per_s: float | None = None  # peak of copy and of read
    matrix_per_s: dict[str, float] = {}
    matrix_device: Device = "cuda"  # which part of a board the matrix rates are of
    tdp_w: float | None = None
    note: str = ""

    def matrix_rate(self, dtype: str, device: Device) -> float | None:
        """The datasheet's peak for a dtype on a device of this kind, or None where it prints none."""
        on = {"gpu": "cuda", "cpu": "cpu", "board": self.matrix_device}[self.kind]
        return self.matrix_per_s.get(dtype) if device == on else None


@cache
def profiles() -> dict[str, Profile]:
    """Every profile by id. Raises msgspec.ValidationError for a file that is not one."""
    found = {}
    for file in sorted((files(__package__) / "profiles").iterdir(), key=lambda f: f.name):
        if file.name.endswith(".toml"):
            profile = msgspec.convert(tomllib.loads(file.read_text(encoding="utf-8")), Profile)
            found[file.name.removesuffix(".toml")] = profile
    return found


def match(host: Host, device: Device) -> Profile | None:
    """The profile of this machine: by its hardware name, else the generic one of its architecture, else None."""
    name = hardware_name(host, device)
    for profile in profiles().values():
        if profile.match and re.fullmatch(profile.match, name):
            return profile
    generic = device == "cpu" and host.board is None and host.cpu.architecture in ("x86_64", "AMD64")
    return profiles()["generic-x86-cpu"] if generic else None
