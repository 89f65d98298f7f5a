"""A generated tree as it stands, on disk or at a revision: manifest, texts and verification records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from codegen import store
from codegen.diagnostics import InputError
from codegen.driver import Compiled
from codegen.emit import coverage, manifest, verified
from codegen.generation import module_path
from codegen.report.revision import Revision
from codegen.targets import TARGETS


@dataclass(frozen=True)
class Snapshot:
    """``compiled`` holds each entry of the manifest with the text that the tree has; ``edited`` are the paths of texts
    that are not what was written."""

    manifest: manifest.Manifest
    compiled: tuple[Compiled, ...]
    coverage: Mapping[str, Mapping[str, coverage.Row]]  # by target and family
    edited: frozenset[str]

    @property
    def version(self) -> str:
        return self.manifest.version


def on_disk(root: Path) -> Snapshot:
    """The tree under a folder. Raises InputError when there is none, or a file of it is missing or damaged, StoreError
    when it is half written."""
    store.check_whole(root)

    def read(path: str) -> bytes | None:
        try:
            return (root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise InputError(f"cannot read {root / path}: {error.strerror}") from None

    return _snapshot(read, f"{root}/", "regraft generate writes it")


def at_revision(revision: Revision) -> Snapshot:
    """The tree of a revision. Raises InputError when it holds none, or a file of it is missing or damaged."""
    return _snapshot(revision.files.get, f"{revision.name}:", "name a revision whose tree is whole")


def _snapshot(read: Callable[[str], bytes | None], label: str, remedy: str) -> Snapshot:
    content = read(manifest.NAME)
    if content is None:
        raise InputError(f"{label}{manifest.NAME} does not exist; {remedy}")
    remembered = manifest.parse(content, f"{label}{manifest.NAME}")
    if remembered.own is not None:
        raise InputError(f"{label} holds variants of your own models, which regraft diff TYPE --from FOLDER shows")
    compiled = []
    edited = set()
    digests: dict[str, dict[str, str]] = {target: {} for target in TARGETS}
    for (target, path), entry in remembered.entries.items():
        one = entry.compiled
        if target not in TARGETS:
            raise InputError(f"{label}{manifest.NAME} has a target {target} that this compiler has not")
        if entry.output:
            name = module_path(one)
            one = replace(one, text=_text(read(name), label + name, remedy))
            digests[target][path] = manifest.digest(one.text or "")
            if digests[target][path] != entry.output:
                edited.add(name)
        compiled.append(one)
    records = verified.parse(read(verified.NAME) or b"", f"{label}{verified.NAME}")
    rows = {
        target: coverage.rows([c for c in compiled if c.target == target], digests[target], records.get(target, {}))
        for target in TARGETS
    }
    by_family = {target: {row.family: row for row in listed} for target, listed in rows.items()}
    return Snapshot(remembered, tuple(compiled), by_family, frozenset(edited))


def _text(content: bytes | None, name: str, remedy: str) -> str:
    if content is None:
        raise InputError(f"{name} is missing; {remedy}")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({error.reason}); {remedy}") from None
