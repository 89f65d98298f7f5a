"""What a variant depends on upstream, and its fingerprints: the same question for the compiler, which records the
answer, and for the runtime, which asks again of the release that is installed."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from posixpath import dirname, join, normpath

from runtime.fingerprint import SCHEME, definitions, fingerprint
from runtime.fingerprint.reliance import Reliance
from runtime.fingerprint.scopes import FUNCTIONS, nested_blocks

DISTRIBUTION = "transformers"
BESIDE = "../"
"""Begins the path of a file that is not upstream's: another package stands beside it, see `runtime.fingerprint.beside`.
"""


@dataclass(frozen=True, order=True)
class Import:
    """A name that a file takes from another file of upstream.

    ``decorates`` says that it is used as a decorator alone: then it counts by its own text, since what it calls around
    a method (hooks, kernels) is not what a variant is derived from. Else all counts that it relies on in its file.
    """

    path: str
    name: str
    decorates: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    @property
    def key(self) -> str:
        """As the manifest writes it: ``file:name``, with ``@`` in front of a decorator."""
        return f"@{self}" if self.decorates else str(self)

    @classmethod
    def of(cls, key: str) -> Import:
        """The import that a key stands for. Raises ValueError when it is none."""
        path, colon, name = key.removeprefix("@").rpartition(":")
        if not (path and colon and name):
            raise ValueError(f"{key!r} is not file:name")
        return cls(path, name, key.startswith("@"))


class File:
    """One upstream file: what its definitions rely on, and their fingerprints, each found once.

    ``path`` is relative to upstream's package.
    """

    def __init__(self, path: str, text: str, tree: ast.Module) -> None:
        self.path = path
        self.text = text
        self.tree = tree
        self.definitions = definitions(tree)
        self.reliance = Reliance(self.definitions)
        self._fingerprints: dict[str, str] = {}

    def relied_on(self, roots: Iterable[str]) -> dict[str, str]:
        """The roots that are in the file, and what they rely on there: qualified name -> fingerprint, by name."""
        return {name: self.fingerprint(name) for name in sorted(self.reliance.of(roots))}

    def fingerprint(self, name: str) -> str:
        """Of one definition of the file."""
        if name not in self._fingerprints:
            self._fingerprints[name] = fingerprint(self.definitions[name])
        return self._fingerprints[name]

    def imports(self, names: Iterable[str]) -> tuple[Import, ...]:
        """What these definitions name that comes from other files of upstream, in order."""
        named: set[str] = set()
        decorating: set[str] = set()
        for name in names:
            mentions = self.reliance.mentions(name)
            named |= mentions.names & self._imported.keys()
            decorating |= mentions.decorators & self._imported.keys()
        return tuple(
            sorted(
                Import(*self._imported[name], decorates)
                for found, decorates in ((named, False), (decorating - named, True))
                for name in found
            )
        )

    @cached_property
    def _imported(self) -> dict[str, tuple[str, str]]:
        """Name in the file -> the file that it is taken from, and its name there."""
        found: dict[str, tuple[str, str]] = {}
        for node in _statements(self.tree.body):
            path = self.source(node) if isinstance(node, ast.ImportFrom) else None
            if path is not None and isinstance(node, ast.ImportFrom):
                found |= {alias.asname or alias.name: (path, alias.name) for alias in node.names}
        return found

    def source(self, node: ast.ImportFrom) -> str | None:
        """The file that a statement imports from, if it is upstream's."""
        parts = (node.module or "").split(".")
        if node.level:
            folder = normpath(join(dirname(self.path), *[".."] * (node.level - 1)))
        elif parts[0] == DISTRIBUTION and len(parts) > 1:
            folder, parts = ".", parts[1:]
        elif self.path.startswith(f"{BESIDE}{parts[0]}/"):
            folder = BESIDE
        else:
            return None
        return normpath(join(folder, *parts)) + ".py"


class Release:
    """The files of a release that others import from, each read and parsed once.

    ``text`` gives the text of a file by its path, or None where there is none. What does not parse counts as not there.
    """

    def __init__(self, text: Callable[[str], str | None]) -> None:
        self._text = text
        self._files: dict[str, File | None] = {}
        self._known: dict[Import, str | None] = {}

    def fingerprints(self, imports: Iterable[Import]) -> dict[str, str]:
        """Key -> fingerprint, for what is a function of the file, or a class of another file with layers.

        Other classes (upstream's base classes, its caches and outputs) and values do not count: nothing is derived from
        them. Of a file beside upstream, what this imports in its turn counts as well.
        """
        found = {}
        for one in sorted(self._followed(imports)):
            known = self._of(one)
            if known is not None:
                found[one.key] = known
        return found

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of the keys whose function is in this release."""
        return {key for key in keys if self._of(Import.of(key)) is not None}

    def _followed(self, imports: Iterable[Import]) -> set[Import]:
        """The imports, and what those of files beside upstream import in their turn."""
        found: set[Import] = set()
        todo = list(imports)
        while todo:
            one = todo.pop()
            file = self.file(one.path) if one.path.startswith(BESIDE) and one not in found else None
            found.add(one)
            if file is not None and self._of(one) is not None:
                todo += file.imports(file.reliance.of([one.name]))
        return found

    def _of(self, one: Import) -> str | None:
        if one not in self._known:
            self._known[one] = self._fingerprint(one)
        return self._known[one]

    def _fingerprint(self, one: Import) -> str | None:
        file = self.file(one.path)
        node = file.definitions.get(one.name) if file is not None else None
        kinds = (*FUNCTIONS, ast.ClassDef) if has_layers(one.path) else FUNCTIONS
        if file is None or not isinstance(node, kinds):
            return None
        if one.decorates:
            return file.fingerprint(one.name)
        lines = [f"{name} {digest}" for name, digest in file.relied_on([one.name]).items()]
        return hashlib.blake2b("\n".join([SCHEME, *lines]).encode(), digest_size=8).hexdigest()

    def file(self, path: str) -> File | None:
        """A file of the release; None where there is none, or none that parses."""
        if path not in self._files:
            text = self._text(path)
            try:
                self._files[path] = File(path, text, ast.parse(text)) if text is not None else None
            except (SyntaxError, ValueError):
                self._files[path] = None
        return self._files[path]


def has_layers(path: str) -> bool:
    """Whether classes of a file are layers of models, rather than upstream's base classes, or configurations."""
    name = path.rpartition("/")[2]
    if path.startswith(BESIDE):
        return not name.startswith("configuration_")
    return path.startswith("models/") and name.startswith("modeling_")


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if`` and ``try`` too."""
    for statement in body:
        yield statement
        if not isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            for nested in nested_blocks(statement):
                yield from _statements(nested)


def compared(
    release: Release,
    path: str,
    derived: Mapping[str, str],
    relied_on: Mapping[str, str],
    imported: Mapping[str, str],
) -> dict[str, str]:
    """What differs in a release from fingerprints that were recorded of another, by name, and how; nothing where it
    means the same.

    Args:
        path: the upstream file.
        derived: what the variants were derived from, with fingerprints.
        relied_on: what that relies on in the file.
        imported: the functions that all of it names and that are other files', by key.
    """
    file = release.file(path)
    if file is None:
        return {path: "no such file, or one that does not parse"}
    recorded = {**derived, **relied_on}
    present = file.relied_on(derived)
    found = _differences(recorded, present, file.definitions)
    taken = release.fingerprints(file.imports(present))
    return found | {
        str(Import.of(key)): how for key, how in _differences(imported, taken, release.known(imported)).items()
    }


def _differences(recorded: Mapping[str, str], present: Mapping[str, str], there: Container[str]) -> dict[str, str]:
    """``there`` are the names that are not gone, whether something relies on them or not."""
    found = {}
    for name in sorted({*recorded, *present}):
        if name not in recorded:
            found[name] = "new"
        elif name in present and present[name] != recorded[name]:
            found[name] = "changed in meaning"
        elif name not in present and name not in there:
            found[name] = "gone"
    return found
