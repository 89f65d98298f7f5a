"""What a derived method relies on in its own file: constructors, class attributes, helpers, other classes, values.

A variant is derived from the methods that the manifest names. Whether it still means the same also depends on what
these call and on what constructors store for them (``self.scaling = ...``).
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

RUN_UNNAMED = ("__init__", "forward")  # calling a class, and calling what that gives


@dataclass(frozen=True)
class Mentions:
    """What a definition names: ``names`` in its body, ``decorators`` in its decorators, ``members`` after ``self.``;
    and the ``imports`` that stand inside of it."""

    names: set[str] = field(default_factory=set)
    decorators: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    imports: list[ast.ImportFrom] = field(default_factory=list)


class Reliance:
    """Who names whom among the definitions of one file; each definition is looked through once."""

    def __init__(self, definitions: Mapping[str, ast.stmt]) -> None:
        self._definitions = definitions
        self._mentions: dict[str, Mentions] = {}
        self._named: dict[str, tuple[str, ...]] = {}

    def of(self, roots: Iterable[str]) -> set[str]:
        """Qualified names of everything that some of the roots, or what they rely on, name: functions, classes and
        values of the file by their name, methods and properties by ``self.<name>`` and ``super().<name>``; with a
        method its class and the class's bases, with a class its constructor and forward. Roots that are not in the
        file are left out."""
        found: set[str] = set()
        todo = list(roots)
        while todo:
            name = todo.pop()
            if name in found or name not in self._definitions:
                continue
            found.add(name)
            if name not in self._named:
                self._named[name] = (*self._names_in(name), *self._again(name))
            todo += self._named[name]
        return found

    def _again(self, name: str) -> Iterator[str]:
        """The other definitions of a name: a setter, the other branch of an ``if``."""
        count = 2
        while f"{name}#{count}" in self._definitions:
            yield f"{name}#{count}"
            count += 1

    def _names_in(self, name: str) -> Iterator[str]:
        node = self._definitions[name]
        owner = name if isinstance(node, ast.ClassDef) else name.rpartition(".")[0]
        if owner:
            yield owner
            yield from self._members(owner, RUN_UNNAMED)
        mentions = self.mentions(name)
        yield from mentions.names
        yield from mentions.decorators
        if owner:
            yield from self._members(owner, mentions.members)

    def mentions(self, name: str) -> Mentions:
        """What one definition names."""
        if name not in self._mentions:
            node, found = self._definitions[name], Mentions()
            decorators = getattr(node, "decorator_list", [])
            _look(decorators, found.decorators, found)
            _look([n for n in ast.iter_child_nodes(node) if n not in decorators], found.names, found)
            self._mentions[name] = found
        return self._mentions[name]

    def _members(self, owner: str, names: Iterable[str]) -> Iterator[str]:
        """Members of a class and of its bases in the file; an overridden one too: ``super()`` may call it."""
        for cls in self._lineage(owner):
            yield from (f"{cls}.{name}" for name in names)

    def _lineage(self, name: str) -> list[str]:
        found: list[str] = []
        todo = [name]
        while todo:
            cls = todo.pop()
            node = self._definitions.get(cls)
            if cls not in found and isinstance(node, ast.ClassDef):
                found.append(cls)
                todo += [base.id for base in node.bases if isinstance(base, ast.Name)]
        return found


def _look(nodes: Iterable[ast.AST], names: set[str], found: Mentions) -> None:
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if type(node) is ast.Name:
            names.add(node.id)
        elif type(node) is ast.Attribute:
            if _is_self(node.value):
                found.members.add(node.attr)
            stack.append(node.value)
        elif type(node) is ast.ImportFrom:
            found.imports.append(node)
        elif type(node) is not ast.Constant:
            for name in node._fields:
                value = getattr(node, name, None)
                if isinstance(value, ast.AST):
                    if not isinstance(value, _WITHOUT_NAMES):
                        stack.append(value)
                elif isinstance(value, list):
                    stack += [item for item in value if isinstance(item, ast.AST)]


_WITHOUT_NAMES = (ast.expr_context, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)


def _is_self(node: ast.expr) -> bool:
    """``self`` or ``super(...)``."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id == "self"
