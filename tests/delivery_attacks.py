"""What somebody could try on a machine's branch, each on a branch of its own, and the reason it is refused with.

Every machine here is named after the attack on it. It delivered one run in order (``FIRST``), then comes the attack.
``collect`` and the ``pre-receive`` hook are tested with the same list.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from archbench.hardware.agent.signed_git import require_git
from deliveries import DATE, Entry, Forge, World, bare, git, identity, run_bytes, run_tree

FIRST, SECOND = identity(1), identity(2)
LARGE = (16 << 20) + 1


@dataclass
class Attack:
    """What an attack has: the machine it is on, what that delivered, and the means to make anything else."""

    world: World
    forge: Forge
    machine: str
    first: str  # the commit that was delivered in order
    runs: dict[str, Any]  # its folder runs/

    def key(self, whose: str = "") -> Any:
        return self.world.key(whose or self.machine)

    def delivery(self, tree: Any = None, **changes: Any) -> str:
        """A commit on top of the first that adds the folder ``tree`` as the second run."""
        runs = self.runs | {SECOND: run_tree(self.machine, SECOND) if tree is None else tree}
        given = {"parents": [self.first], "key": self.key()} | changes
        return self.forge.commit({"runs": runs}, **given)

    def with_file(self, path: str, held: Any) -> str:
        """A delivery with one more or another file."""
        tree = run_tree(self.machine, SECOND)
        *folders, name = path.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = held
        return self.delivery(tree)

    def changed(self, edit: Callable[[dict[str, Any]], object]) -> str:
        """A delivery that also does something to the first run."""
        first = run_tree(self.machine, FIRST)
        first[self.machine]["cells"] = dict(self.runs[FIRST][self.machine]["cells"])
        edit(first[self.machine])
        runs = {FIRST: first, SECOND: run_tree(self.machine, SECOND)}
        return self.forge.commit({"runs": runs}, [self.first], self.key())


def _forged(a: Attack) -> str:
    honest = git(a.forge.repository, "cat-file", "commit", a.delivery()).stdout
    stolen = "-----BEGIN" + honest.partition("-----BEGIN")[2].partition("\n\n")[0].replace("\n ", "\n")
    tree = run_tree(a.machine, SECOND, environment="faster")
    return a.delivery(tree, key=None, signature=stolen.encode())


def _revoked(a: Attack) -> str:
    with a.world.revoked.open("a") as file:
        file.write(a.key().public + "\n")
    return a.delivery()


def _pgp(a: Attack) -> str:
    return a.delivery(key=None, signature=b"-----BEGIN PGP SIGNATURE-----\n\nabcd\n-----END PGP SIGNATURE-----\n")


def _submodule(a: Attack) -> str:
    return a.with_file(f"{a.machine}/asv.json", Entry("160000", a.first))


def _link(mode: str, a: Attack) -> str:
    return a.with_file(f"{a.machine}/asv.json", Entry(mode, a.forge.write("blob", b"/etc/passwd")))


def _rewritten(a: Attack) -> str:
    return a.forge.commit({"runs": {SECOND: run_tree(a.machine, SECOND)}}, [], a.key())


def _two_parents(a: Attack) -> str:
    other = a.forge.commit({"runs": {}}, [], a.key())
    return a.delivery(parents=[a.first, other])


def _merged_in(a: Attack) -> str:
    other = a.forge.commit({"runs": {identity(9): run_tree(a.machine, identity(9))}}, [], a.key())
    return a.forge.commit({"runs": a.runs}, [other, a.first], a.key())  # what was delivered is the second parent


def _cells(a: Attack, content: bytes) -> str:
    return a.with_file(f"{a.machine}/cells/{SECOND}.jsonl", content)


def _overwriting(a: Attack) -> str:
    tree = run_tree(a.machine, SECOND)
    tree[a.machine]["cells"][f"{FIRST}.jsonl"] = run_bytes(a.machine, FIRST)
    return a.delivery(tree)


def _into_the_first(a: Attack) -> str:
    runs = {FIRST: {**a.runs[FIRST], "benchmarks.json": b"{}"}}
    return a.forge.commit({"runs": runs}, [a.first], a.key())


def _two_runs(a: Attack) -> str:
    runs = a.runs | {SECOND: run_tree(a.machine, SECOND), identity(3): run_tree(a.machine, identity(3))}
    return a.forge.commit({"runs": runs}, [a.first], a.key())


EXPIRED = 'valid-before="20260101",'
ATTACKS: dict[str, tuple[Callable[[Attack], str], str]] = {
    "unsigned": (lambda a: a.delivery(key=None), "the commit is not signed"),
    "forged": (_forged, "the signature is forged or broken"),
    "garbage": (lambda a: a.delivery(key=None, signature=b"-----BEGIN SSH SIGNATURE-----\nx\n"), "forged or broken"),
    "pgp": (_pgp, "signed, but not with an SSH key"),
    "other-purpose": (lambda a: a.delivery(namespace="file"), "forged or broken"),
    "other-machine": (lambda a: a.delivery(key=a.key("honest")), "signed by the key of honest, on the branch of"),
    "stranger": (
        lambda a: a.delivery(key=a.world.key("nobody", allow=False)),
        "which is nobody's in allowed_signers",
    ),
    "expired": (lambda a: a.delivery(), 'is not valid today: valid-before="20260101"'),
    "expired-dated-back": (lambda a: a.delivery(date=DATE - 365 * 86400), "is not valid today: valid-before"),
    "not-yet": (lambda a: a.delivery(), "is not valid today: valid-after"),
    "revoked": (_revoked, "was revoked"),
    "wildcard": (lambda a: a.delivery(), "a line of its own must give it to 'wildcard'"),
    "header": (lambda a: a.delivery(headers=b"encoding latin-1\n"), "headers a delivery does not have"),
    "foreign": (lambda a: a.with_file("honest/cells/x.jsonl", b"{}\n"), "lies in the folder of 'honest', not of"),
    "outside": (
        lambda a: a.forge.commit({"runs": a.runs, "README": b"hello"}, [a.first], a.key()),
        "'README' lies outside runs/<run>/",
    ),
    "odd-file": (lambda a: a.with_file(f"{a.machine}/run.sh", b"rm"), "is no file of a results folder"),
    "hidden-file": (lambda a: a.with_file(f"{a.machine}/.hidden.json", b"{}"), "'.hidden.json' in it, which is not"),
    "odd-name": (lambda a: a.with_file(f"{a.machine}/a\u202eb.json", b"{}"), r"a\\u202eb.json' in it, which is not"),
    "symlink": (partial(_link, "120000"), "is a symbolic link"),
    "executable": (partial(_link, "100755"), "is an executable file"),
    "submodule": (_submodule, "is a submodule"),
    "rewritten": (_rewritten, "the history was rewritten"),
    "two-parents": (_two_parents, "the commit has 2 parents"),
    "merged-in": (_merged_in, "the commit does not build on the last one that counted"),
    "empty": (lambda a: a.forge.commit({"runs": a.runs}, [a.first], a.key()), "the commit is empty"),
    "two-runs": (_two_runs, "the commit delivers 2 runs, not one"),
    "deleting": (lambda a: a.changed(lambda own: own.pop("machine.json")), "deletes 'runs/"),
    "changing": (lambda a: a.changed(lambda own: own.update({"machine.json": b"{}"})), "changes 'runs/"),
    "retyping": (
        lambda a: a.changed(lambda own: own.update({"machine.json": Entry("120000", a.forge.write("blob", b"x"))})),
        "changes the type of 'runs/",
    ),
    "adding-to-an-old-run": (_into_the_first, f"adds to the run {FIRST}, which was delivered before"),
    "overwriting": (_overwriting, "would overwrite the result of an earlier delivery"),
    "no-run": (lambda a: a.delivery({a.machine: {"machine.json": b"{}"}}), "holds no run file"),
    "large": (lambda a: a.with_file(f"{a.machine}/asv.json", b" " * LARGE), f"has {LARGE} bytes, more than"),
    "not-utf-8": (lambda a: a.with_file(f"{a.machine}/asv.json", b'{"a": "\xff"}'), "is not UTF-8"),
    "not-json": (lambda a: a.with_file(f"{a.machine}/asv.json", b"{'a': 1}"), "is not JSON"),
    "no-object": (lambda a: a.with_file(f"{a.machine}/asv.json", b"[]"), "is no object"),
    "deep": (lambda a: a.with_file(f"{a.machine}/asv.json", b"[" * 100_000), "is not JSON"),
    "torn": (lambda a: _cells(a, run_bytes(a.machine, SECOND)[:-20]), "ends in the middle of a line"),
    "other-header": (lambda a: _cells(a, run_bytes("honest", SECOND)), "does not begin with the header of a run on"),
}
OPTIONS = {
    "expired": EXPIRED,
    "expired-dated-back": EXPIRED,
    "not-yet": 'valid-after="20990101",',
}
if require_git() >= (2, 35):  # older ones verify at the present moment only, as is done before they are asked
    ATTACKS["older-than-its-key"] = (lambda a: a.delivery(), "git calls the signature 'U', not 'G'")
    OPTIONS["older-than-its-key"] = 'valid-after="20260601",'
# Trees that git's own check refuses, in the hook's repository as in the collector's.
BROKEN = {
    "dot-dot": (lambda a: a.with_file(f"{a.machine}/../{a.machine}/x.json", b"{}"), "hasDotdot"),
    "dot-git": (lambda a: a.with_file(f"{a.machine}/.git/config", b"[core]"), "hasDotgit"),
}


def begin(folder: Path, names: list[str]) -> tuple[World, dict[str, Attack]]:
    """A world in which every machine, and an honest one, delivered its first run; the remote has them."""
    world = World(folder)
    forge = Forge(bare(folder / "attacker.git"))
    attacks = {}
    for name in [*names, "honest"]:
        runs = {FIRST: run_tree(name, FIRST)}
        first = forge.commit({"runs": runs}, [], world.key(name))
        forge.point(f"machine/{name}", first)
        attacks[name] = Attack(world, forge, name, first, runs)
    git(forge.repository, "push", "--quiet", str(world.remote), "refs/heads/machine/*:refs/heads/machine/*")
    return world, attacks


def attack(attacks: dict[str, Attack], kinds: dict[str, Any]) -> None:
    """Every branch gets its attack in the attacker's repository, and the honest machine its second run."""
    for name, (made, _) in kinds.items():
        attacks[name].forge.point(f"machine/{name}", made(attacks[name]))
    honest = attacks["honest"]
    honest.forge.point("machine/honest", honest.delivery())
    world = honest.world
    lines = world.allowed.read_text().splitlines(keepends=True)
    for i, line in enumerate(lines):
        machine = line.split()[0]
        line = line.replace(" namespaces", f" {OPTIONS.get(machine, '')}namespaces")
        lines[i] = line.replace("wildcard ", "wild* ", 1) if machine == "wildcard" else line
    world.allowed.write_text("".join(lines))


def push(attacks: dict[str, Attack], *names: str) -> subprocess.CompletedProcess[str]:
    honest = attacks["honest"]
    specs = [f"+refs/heads/machine/{name}:refs/heads/machine/{name}" for name in names]
    return git(honest.forge.repository, "push", str(honest.world.remote), *specs, check=False)
