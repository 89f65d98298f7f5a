"""What the code of one file relies on in other files of the same release: mask builders, rotary initialisation,
activations, caches.

Followed are names that functions and class bodies read: to the file that defines them and all that they rely on in it,
and on from there only in ``models/``. What a mask builder itself imports is no model's any more, and leads to all of
the package within three steps. Not followed are base classes (they load, save and generate, and change with every
release), annotations, and decorators that only write documentation.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

from codegen.source import Release
from runtime.fingerprint import Definition
from runtime.fingerprint.canonical import only_documents
from runtime.fingerprint.dependence import File
from runtime.fingerprint.dependence import Release as ParsedRelease

MODELS = "models/"

Place = tuple[str, str]
"""A file's path in the package, and the qualified name of a definition or value in it."""


class Files:
    """The files of a release, each read when it is first asked for."""

    def __init__(self, release: Release) -> None:
        self._parsed = ParsedRelease(release.text_if_readable)
        self._imports: dict[str, Mapping[str, Place]] = {}
        self._from: dict[Place, frozenset[Place]] = {}

    def at(self, path: str) -> File | None:
        """The file; None when there is none, or when it is damaged."""
        return self._parsed.file(path)

    def imported_by(self, path: str, names: Iterable[str]) -> frozenset[Place]:
        """What definitions of a file rely on in other files."""
        found: set[Place] = set()
        todo: list[Place] = [(path, name) for name in names]
        while todo:
            place = todo.pop()
            new = self._named(place) - found
            found |= new
            todo += [one for one in new if one[0].startswith(MODELS)]
        return frozenset(place for place in found if place[0] != path)

    def _named(self, place: Place) -> frozenset[Place]:
        if place not in self._from:
            self._from[place] = frozenset(self._places(place))
        return self._from[place]

    def _places(self, place: Place) -> Iterator[Place]:
        file = self.at(place[0])
        node = file.definitions.get(place[1]) if file is not None else None
        if file is None or node is None:
            return
        for name in _read(node):
            imports = self._imported(file)
            if name in imports and (origin := self._origin(*imports[name])) is not None:
                yield from self._whole(*origin)

    def _imported(self, file: File) -> Mapping[str, Place]:
        """Names imported from the same package, wherever in the file."""
        if file.path not in self._imports:
            found: dict[str, Place] = {}
            for node in ast.walk(file.tree):
                if isinstance(node, ast.ImportFrom) and (path := file.source(node)) is not None:
                    found |= {alias.asname or alias.name: (path, alias.name) for alias in node.names}
            self._imports[file.path] = found
        return self._imports[file.path]

    def _origin(self, module: str, name: str) -> Place | None:
        """Where an imported name is defined, through files and packages that only hand it on."""
        for path in (module, f"{module.removesuffix('.py')}/__init__.py"):
            file = self.at(path)
            if file is not None and name in file.definitions:
                return path, name
            if file is not None and self._imported(file).get(name, (module, name)) != (module, name):
                return self._origin(*self._imported(file)[name])
        return None

    def _whole(self, path: str, name: str) -> Iterator[Place]:
        """A definition, and what it relies on in its file; of a class all members, since they are called on objects."""
        file = self.at(path)
        assert file is not None
        inside = [one for one in file.definitions if one == name or one.startswith(f"{name}.")]
        yield from ((path, one) for one in file.reliance.of(inside))


def _read(node: Definition) -> Iterator[str]:
    """Names that a definition reads, annotations, documentation and base classes apart."""
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        yield from (inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name))
        return
    stack: list[ast.AST] = list(node.body)
    stack += [d for d in node.decorator_list if not only_documents(d)]
    if isinstance(node, ast.ClassDef):
        stack += node.keywords
    else:
        stack += [default for default in (*node.args.defaults, *node.args.kw_defaults) if default is not None]
    while stack:
        part = stack.pop()
        if isinstance(part, ast.Name):
            yield part.id
        elif isinstance(part, ast.AnnAssign):
            stack += [one for one in (part.target, part.value) if one is not None]
        elif not isinstance(part, ast.arg):
            skipped = part.returns if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef) else None
            stack += [child for child in ast.iter_child_nodes(part) if child is not skipped]
