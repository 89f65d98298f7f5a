"""The report as a file: what is read, what is compared, what is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from codegen.acquire import acquire, same_version
from codegen.diagnostics import InputError
from codegen.report.gather import Before, gather
from codegen.report.page import render
from codegen.report.revision import read_revision
from codegen.report.snapshot import Snapshot, at_revision, on_disk
from codegen.source import Release


@dataclass(frozen=True)
class Page:
    """What was written: ``size`` in bytes, ``before`` the release compared with, empty without a comparison."""

    path: str
    size: int
    families: int
    release: str
    before: str
    edited: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def written(
    root: Path,
    path: Path,
    against: str | None,
    source: Path | None,
    base: str | None,
    jobs: int,
    planned: Callable[[int], None],
    done: Callable[[str], None],
) -> Page:
    """Writes the report on the tree under ``root``, all of it or nothing.

    Raises InputError when the tree, a release or the revision cannot be had, or the file cannot be written.
    """
    if base is not None and against is None:
        raise InputError("--base is the release of the revision to compare with; pass --against too")
    if not path.resolve().parent.is_dir() or path.is_dir():
        raise InputError(f"{path} is a folder" if path.is_dir() else f"{path.parent} is not a folder")
    tree = on_disk(root)
    release = _release(tree, str(source) if source is not None else None, "the tree", "--source")
    before = None
    if against is not None:
        revision = read_revision(root, against)
        old = at_revision(revision)
        same = base is None and same_version(old.version, tree.version)
        theirs = release if same else _release(old, base, against, "--base")
        before = Before(revision.name, revision.commit, old, theirs)
    data = gather(tree, release, before, jobs, planned, done)
    text = render(data)
    _write(path, text)
    size = len(text.encode())
    edited = tuple(sorted(tree.edited))
    return Page(
        str(path), size, len(data["families"]), release.version, before.release.version if before else "", edited
    )


def _release(tree: Snapshot, named: str | None, owner: str, option: str) -> Release:
    """The release that a tree was generated from."""
    try:
        release = acquire(named or tree.version)
    except InputError as error:
        raise InputError(f"{owner} is of transformers {tree.version}: {error} ({option})") from None
    if not same_version(release.version, tree.version):
        raise InputError(f"{owner} is of transformers {tree.version}, and {option} is of {release.version}")
    return release


def _write(path: Path, text: str) -> None:
    """Beside the file first, so that a page is whole or as it was."""
    try:
        descriptor, part = tempfile.mkstemp(dir=path.resolve().parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode())
            os.chmod(part, 0o644)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
