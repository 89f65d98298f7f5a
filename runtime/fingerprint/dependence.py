"""What a variant depends on upstream, and its fingerprints: the same question for the compiler, which records the
answer, for the runtime, which asks again of the release that is installed, and for the comparison of two releases.

Of its own file that is what `reliance` follows. Of the files that this imports there count

* functions, and module-level values; tables (of rotary initialisers or activations, for example) entry by entry, so
  that one more entry is no difference;
* classes of other modeling files, and others that have a ``forward`` of their own, with all members;
* all that these rely on in their file, and on from there only in ``models/``;
* decorators, by their own text, if they are imported from the file that defines them.

Files of the user's, which stand beside upstream (`runtime.fingerprint.beside`), count as those in ``models/`` do, with
all classes but configurations.

Not counted are other classes (base classes, caches, outputs, configurations), what a file outside of ``models/`` itself
imports, and what a decorator calls. Between releases these bring questions about the machine (``is_..._available``),
hooks and hub kernels, and they lead to all of the package within three steps. So the back ends of attention and of
experts are not compared: a configuration chooses them, and the ones that are installed are called.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from posixpath import dirname, join, normpath

from runtime.fingerprint import SCHEME, definitions, fingerprint
from runtime.fingerprint.canonical import DOCUMENTATION_DECORATORS
from runtime.fingerprint.reliance import Reliance
from runtime.fingerprint.scopes import FUNCTIONS, nested_blocks

DISTRIBUTION = "transformers"
MODELS = "models/"
BESIDE = "../"
"""Begins the path of a file that is not upstream's: another package stands beside it, see `runtime.fingerprint.beside`.
"""

Place = tuple[str, str]
"""A file's path in the package, and the qualified name of a definition or value in it."""

Parts = Mapping[str, str]
"""What an import leads to: ``file:name`` -> fingerprint."""


@dataclass(frozen=True, order=True)
class Import:
    """A name that a file takes from another file of upstream.

    ``decorates`` says that it is used as a decorator alone: then it counts by its own text, since what it calls around
    a method (hooks, kernels) is not what a variant is derived from.
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
        found: set[Place] = set()
        decorating: set[Place] = set()
        for name in names:
            mentions = self.reliance.mentions(name)
            taken = {**self._imported, **self._taken(mentions.imports)} if mentions.imports else self._imported
            found |= {taken[one] for one in mentions.names & taken.keys()}
            decorating |= {taken[one] for one in (mentions.decorators - DOCUMENTATION_DECORATORS) & taken.keys()}
        return tuple(
            sorted([*(Import(*one, False) for one in found), *(Import(*one, True) for one in decorating - found)])
        )

    def hands_on(self, name: str) -> Place | None:
        """Where the file itself takes a name from."""
        return self._imported.get(name)

    def whole(self, name: str) -> set[str]:
        """A definition and all that it relies on in the file: of a class, and of the classes that a value is made of,
        all members, since they are called on objects."""
        node = self.definitions[name]
        if isinstance(node, FUNCTIONS):
            return self.reliance.of([name])
        made_of = (name,) if isinstance(node, ast.ClassDef) else self.reliance.of([name])
        classes = tuple(f"{one}." for one in made_of if isinstance(self.definitions[one], ast.ClassDef))
        return self.reliance.of([name, *(one for one in self.definitions if one.startswith(classes))])

    @cached_property
    def _imported(self) -> dict[str, Place]:
        """Name in the file -> the file that it is taken from, and its name there."""
        return self._taken(_statements(self.tree.body))

    def _taken(self, statements: Iterable[ast.stmt]) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for node in statements:
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
        elif self.path.startswith(BESIDE) and node.module == DISTRIBUTION:
            folder, parts = ".", ["__init__"]
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
        self._parts: dict[Import, Parts] = {}

    def parts(self, imports: Iterable[Import]) -> dict[str, Parts]:
        """By key what each import leads to, with fingerprints; those that do not count are left out."""
        found = {}
        for one in imports:
            if one not in self._parts:
                self._parts[one] = dict(
                    part for place in sorted(set(self._follow(one))) for part in self._prints(*place)
                )
            if self._parts[one]:
                found[one.key] = self._parts[one]
        return found

    def has(self, part: str) -> bool:
        """Whether ``file:name``, or an entry ``file:name[key]``, is in this release."""
        path, _, name = part.partition(":")
        file, name = self.file(path), name.partition("[")[0]
        return file is not None and name in file.definitions and part in dict(self._prints(path, name))

    def _prints(self, path: str, name: str) -> Iterator[tuple[str, str]]:
        """A definition with its fingerprint; of a table, each entry with its own."""
        file = self.file(path)
        assert file is not None
        entries = _entries(file.definitions[name])
        if not entries:
            yield f"{path}:{name}", file.fingerprint(name)
        for key, value in entries:
            yield f"{path}:{name}[{key!r}]", fingerprint(ast.Assign([ast.Name(name, ast.Store())], value))

    def _follow(self, one: Import) -> Iterator[Place]:
        """What an import leads to, itself included; nothing where it does not count."""
        todo, seen = [one], {one}
        while todo:
            current = todo.pop()
            file, name = self._origin(current)
            if file is None or not _counts(file, name):
                continue
            names = {name} if current.decorates else file.whole(name)
            yield from ((file.path, inside) for inside in names)
            if file.path.startswith((MODELS, BESIDE)) and not current.decorates:
                new = set(file.imports(names)) - seen
                seen |= new
                todo += new

    def _origin(self, one: Import) -> tuple[File | None, str]:
        """The file that defines an import, and its name there: through packages that hand it on, but for decorators."""
        place: Place | None = (one.path, one.name)
        seen: set[Place] = set()
        while place is not None and place not in seen:
            seen.add(place)
            path, name = place
            file = self.file(path)
            if file is None and not one.decorates:
                file = self.file(f"{path.removesuffix('.py')}/__init__.py")
            if file is not None and name in file.definitions:
                return file, name
            place = None if file is None or one.decorates else file.hands_on(name)
        return None, one.name

    def file(self, path: str) -> File | None:
        """A file of the release; None where there is none, or none that parses."""
        if path not in self._files:
            text = self._text(path)
            try:
                self._files[path] = File(path, text, ast.parse(text)) if text is not None else None
            except (SyntaxError, ValueError):
                self._files[path] = None
        return self._files[path]


def _counts(file: File, name: str) -> bool:
    """Whether a definition of another file can change what a variant computes."""
    if not isinstance(file.definitions[name], ast.ClassDef):
        return True
    stem = file.path.rpartition("/")[2]
    modeling = file.path.startswith(MODELS) and stem.startswith("modeling_")
    users = file.path.startswith(BESIDE) and not stem.startswith("configuration_")
    return modeling or users or f"{name}.forward" in file.definitions


def _entries(node: ast.stmt) -> list[tuple[object, ast.expr]]:
    """Of a value that is a table with constant keys."""
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(value, ast.Dict):
        return []
    pairs: list[tuple[object, ast.expr]] = [
        (key.value, item) for key, item in zip(value.keys, value.values, strict=True) if isinstance(key, ast.Constant)
    ]
    return pairs if len(pairs) == len(value.keys) else []


def digest(parts: Parts) -> str:
    """One digest for all that an import leads to: 16 hex characters."""
    lines = [f"{name} {found}" for name, found in sorted(parts.items())]
    return hashlib.blake2b("\n".join([SCHEME, *lines]).encode(), digest_size=8).hexdigest()


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
    imported: Mapping[str, Parts],
) -> dict[str, str]:
    """What differs in a release from fingerprints that were recorded of another, by name, and how; nothing where it
    means the same.

    Args:
        path: the upstream file.
        derived: what the variants were derived from, with fingerprints.
        relied_on: what that relies on in the file.
        imported: what each of the imports of all this leads to in other files, by key.
    """
    file = release.file(path)
    if file is None:
        return {path: "no such file, or one that does not parse"}
    present = file.relied_on(derived)
    found = _differences({**derived, **relied_on}, present, file.definitions.__contains__)
    return found | compared_elsewhere(release, imported, release.parts(file.imports(present)))


def compared_elsewhere(release: Release, recorded: Mapping[str, Parts], present: Mapping[str, Parts]) -> dict[str, str]:
    """What differs of imported code, by ``file:name``, and how.

    What is new counts if it is an import that is new, or a member of something that was there. Else a definition names
    it that differs itself, or an entry that a table has more.

    Args:
        release: the newer one.
        recorded: what the imports led to in the older release, by key.
        present: the same in the newer one.
    """
    was, fresh = together(recorded), together({key: present[key] for key in present.keys() - recorded.keys()})
    found = _differences(was, together(present), release.has)
    return {name: how for name, how in found.items() if how != "new" or name in fresh or _owner(name) in was}


def together(imported: Mapping[str, Parts]) -> Parts:
    """What all of some imports lead to."""
    return {name: one for parts in imported.values() for name, one in parts.items()}


def _owner(part: str) -> str:
    """``file:Class`` of ``file:Class.method``, and ``file:name`` of ``file:name#2``."""
    path, _, name = part.partition(":")
    return f"{path}:{name.partition('[')[0].partition('#')[0].partition('.')[0]}"


def _differences(recorded: Parts, present: Parts, is_there: Callable[[str], bool]) -> dict[str, str]:
    """``is_there`` says that a name is not gone, whether something relies on it or not."""
    found = {}
    for name in sorted({*recorded, *present}):
        if name not in recorded:
            found[name] = "new"
        elif name in present and present[name] != recorded[name]:
            found[name] = "changed in meaning"
        elif name not in present and not is_there(name):
            found[name] = "gone"
    return found
