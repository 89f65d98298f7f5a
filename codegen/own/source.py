"""A folder of the user's as a source of text: its own modeling files, with upstream's helpers of one release."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from codegen.diagnostics import InputError, SourceError, Span, damaged
from codegen.discovery import Family, discover
from codegen.emit import manifest
from codegen.own.heads import Heads, find_heads
from codegen.own.import_path import DYNAMIC, ImportPath, Loader, import_path, is_name
from codegen.source import PACKAGE, Release
from runtime.fingerprint import beside, text_digest
from runtime.fingerprint.dependence import BESIDE

_TAKEN = sys.stdlib_module_names | {"codegen", "generated", "runtime", "torch", PACKAGE, DYNAMIC}
"""Packages that variants, or what they import, need by these names."""
_LEFT_ALONE = frozenset({"__pycache__", ".regraft-commit"})


@dataclass(frozen=True)
class OwnSource(Release):
    """A folder; ``version`` is that of the upstream release whose helpers its files import.

    Paths of its own files are names in the folder; all other paths are upstream's.
    """

    upstream: Release = field(repr=False)
    folder: Path
    imported_as: ImportPath
    heads: Heads

    @property
    def package(self) -> str:
        return self.imported_as.package

    @property
    def families(self) -> tuple[Family, ...]:
        return self.heads.families

    @property
    def paths(self) -> tuple[str, ...]:
        """The modeling files, by name."""
        return tuple(sorted({family.path for family in self.families}))

    def text(self, path: str) -> str:
        """A modeling file of the folder or, by any other path, of upstream."""
        if path not in self.paths:
            return self.upstream.text(path)
        place = self.folder / path
        try:
            return place.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problem = damaged(Span(path), "a readable file", str(error))
            raise SourceError(f"cannot read {place}: {error}", problem) from None

    def text_if_readable(self, path: str) -> str | None:
        """As upstream's; the user's own files are found beside upstream, see `runtime.fingerprint.beside`."""
        if path.startswith(BESIDE):
            return beside.read(self.package, self.folder.resolve(), path)
        return self.upstream.text_if_readable(path)

    def record(self, out: Path) -> manifest.Own:
        """What the manifest under ``out`` says of it."""
        try:
            folder = Path(os.path.relpath(self.folder.resolve(), out.resolve())).as_posix()
        except ValueError:
            raise InputError(f"{self.folder} and {out} are on different drives; put one beside the other") from None
        digests = {path: text_digest(self.text(path).encode()) for path in self.paths}
        return manifest.Own(folder, self.imported_as.package, self.imported_as.loader.value, digests)


def open_own(folder: Path, module: str | None, upstream: Release) -> OwnSource:
    """A folder with ``modeling_<name>.py``; ``module`` is the package's dotted name, None to find it.

    Raises InputError: no causal LM or more than one, no configuration, a model type of upstream's, no import path.
    """
    heads = find_heads(folder)
    known = {family.model_type for family in discover(upstream)}
    if taken := [f for f in heads.families if f.model_type in known]:
        raise InputError(
            f"{folder}: model type {taken[0].model_type!r} is one of upstream's own; a model of another code needs a"
            " model_type of its own"
        )
    path = import_path(folder, module, heads.is_remote_code)
    return OwnSource(upstream.version, upstream._reader, upstream, folder, path, heads)


def open_source(upstream: Release, folder: Path | None, module: str | None, out: Path | None) -> OwnSource:
    """As `open_own`; what is not told is as the package under ``out`` remembers it.

    Raises InputError also where that folder is gone.
    """
    written = None if out is None else manifest.read(out / manifest.NAME)
    was = None if written is None else written.own
    if out is not None and was is not None:
        old = Path(os.path.normpath(out.resolve() / was.folder))
        if folder is None and not old.is_dir():
            raise InputError(f"{out} was generated from {old}, which is gone; pass --from with its new place")
        folder = folder or old
        if module is None and was.loader == Loader.IMPORT.value and folder.resolve() == old.resolve():
            module = was.module
    assert folder is not None, "told, or remembered"
    return open_own(folder, module, upstream)


def check_place(out: Path, module: str, owned: frozenset[str], texts: frozenset[str]) -> None:
    """Whether a package may be written to ``out``. ``module``: the package that the models are imported from;
    ``owned``: what an earlier run wrote there; ``texts``: what this one would write.

    Raises InputError for a folder with somebody else's files in it, and for one that cannot be a package.
    """
    name = out.resolve().name
    if not is_name(name):
        raise InputError(f"--out {out}: {name!r} is no name of a Python package")
    if name in {*_TAKEN, module.partition(".")[0]} and not (out.resolve().parent / "__init__.py").exists():
        raise InputError(f"--out {out}: a package {name!r} is imported from elsewhere; name another folder")
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"--out {out} is not a folder")
    if not (out / manifest.NAME).exists():
        foreign = sorted(path.name for path in out.iterdir() if path.name not in _LEFT_ALONE)
    else:
        foreign = sorted(path for path in texts - owned if (out / path).exists())
    if foreign:
        raise InputError(
            f"--out {out} holds files that regraft did not write ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); nothing was written. Name a new folder"
        )
