"""What a derived method relies on in its own file: constructors, class attributes, helpers, other classes.

The manifest has fingerprints of the methods that a variant was derived from. Whether a variant still means the same
also depends on what these call and on what constructors store for them (``self.scaling = ...``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

from codegen.fingerprint import Definition

RUN_UNNAMED = ("__init__", "forward")  # calling a class, and calling what that gives


def relied_on(definitions: Mapping[str, Definition], roots: Iterable[str]) -> set[str]:
    """Qualified names of everything that some of the roots, or what they rely on, name: functions and classes of the
    file by their name, methods and properties by ``self.<name>`` and ``super().<name>``; with a method its class and
    the class's bases, with a class its constructor and forward. Roots that are not in the file are left out."""
    found: set[str] = set()
    todo = list(roots)
    while todo:
        name = todo.pop()
        if name in found or name not in definitions:
            continue
        found.add(name)
        todo += _named(definitions, name)
    return found


def _named(definitions: Mapping[str, Definition], name: str) -> Iterator[str]:
    node = definitions[name]
    owner = name if isinstance(node, ast.ClassDef) else name.rpartition(".")[0]
    if owner:
        yield owner
        yield from _members(definitions, owner, RUN_UNNAMED)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id
        elif isinstance(inner, ast.Attribute) and owner and ast.unparse(inner.value) in {"self", "super()"}:
            yield from _members(definitions, owner, (inner.attr,))


def _members(definitions: Mapping[str, Definition], owner: str, names: Iterable[str]) -> Iterator[str]:
    """Members of a class and of its bases in the file; an overridden one too, since it may be called by ``super()``."""
    for cls in _lineage(definitions, owner):
        yield from (f"{cls}.{name}" for name in names)


def _lineage(definitions: Mapping[str, Definition], name: str) -> list[str]:
    found: list[str] = []
    todo = [name]
    while todo:
        cls = todo.pop()
        node = definitions.get(cls)
        if cls not in found and isinstance(node, ast.ClassDef):
            found.append(cls)
            todo += [base.id for base in node.bases if isinstance(base, ast.Name)]
    return found
