"""A move to another release: what it changes, and the whole of it as one commit of the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codegen import pins, store
from codegen.acquire import acquire, as_version, same_version
from codegen.diagnostics import InputError
from codegen.drift import Outcome, Report, Side, compare
from codegen.emit import manifest
from codegen.generation import FileState, Tree
from codegen.source import PACKAGE, Release, open_release

Build = Callable[[Release], Tree]


@dataclass(frozen=True)
class Bump:
    """What is to be written, and the report of what it changes."""

    report: Report
    tree: Tree
    conflicts: tuple[str, ...] = ()  # pins of the project that the new release does not go with


def endpoints(version: str, root: Path, source: Path | None, base: str | None) -> tuple[Release, Release]:
    """The release that the tree was generated from, and the one to move to.

    Raises InputError when there is no tree, or a source is not of the release it is meant to be.
    """
    if as_version(version) is None:
        raise InputError(f"{version} is not a version")
    store.check_whole(root)
    written = manifest.read(root / manifest.NAME)
    if written is None:
        raise InputError(f"{root} holds no manifest; run regraft generate")
    if written.own is not None:
        raise InputError(
            f"{root} holds variants of your own models; install {PACKAGE} {version} and generate them again"
        )
    new = _of(version, open_release(source) if source is not None else acquire(version))
    old = _of(written.version, acquire(base or written.version))
    return old, new


def _of(version: str, release: Release) -> Release:
    if not same_version(release.version, version):
        raise InputError(f"the source is of {release.version}, not of {version}")
    return release


def prepare(old: Release, new: Release, root: Path, build: Build) -> Bump:
    """Compiles both releases and compares them; touches no file.

    Raises InputError when something cannot be written: a file edited by hand, a project without a pin.
    """
    pins.moved(root.parent, new.version)  # said before a minute of compiling, not after
    before, tree = Side(old, build(old).compiled), build(new)
    edited = tree.in_state(FileState.HAND_EDITED)
    if edited:
        raise InputError(
            f"edited by hand: {', '.join(edited)}. Nothing was written. Move the change into a rule,"
            " or overwrite it with regraft generate --discard-edits first"
        )
    return Bump(compare(before, Side(new, tree.compiled)), tree, pins.conflicts(root.parent, new))


def write(bump: Bump, root: Path) -> store.Changes:
    """The tree and the pins, all of it or nothing. Raises StoreError, and then all is as it was."""
    texts = pins.moved(root.parent, bump.tree.version)
    changes = store.plan(root, bump.tree.files, bump.tree.owned, texts)
    store.commit(root, changes)
    return changes


def to_verify(report: Report, target: str) -> tuple[str, ...]:
    """Families whose variants are to be verified: those whose text is another, or whose upstream is in meaning,
    the files that it imports included."""
    outcomes = {Outcome.CHANGED, Outcome.NEWLY_SUPPORTED}
    return tuple(
        f.family
        for f in report.families
        for v in f.variants
        if v.target == target and (v.outcome in outcomes or (v.outcome is Outcome.UNCHANGED and f.means_otherwise))
    )
