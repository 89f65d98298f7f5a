"""Spelling-insensitive fingerprints of upstream methods and classes.

Between two upstream releases a method is *unchanged* (same `spelling`), *spelling only* (other text, same
`fingerprint`) or *semantic* (other fingerprint). The fingerprint is the digest of a canonical form that is computed
on the standard library's syntax tree, because LibCST would cost about ten times as much for a question that needs no
layout. A rewrite is folded into the canonical form only if it cannot change what the code does:

* formatting, comments, docstrings, `pass`, parentheses, quotes, line joins, annotations (those of a class body stay:
  dataclasses and `PreTrainedModel` read them), decorators that only write documentation;
* names of local variables, of `*args` and of `**kwargs`; parameters keep theirs, since callers use keywords;
* order of keyword arguments as far as evaluating their values has no order, e.g. names, attributes, constants;
* `if not c: a else: b` for `if c: b else: a`, early return (raise, continue, break) for `else`, a conditional
  expression that is assigned or returned for the statement, `return x` right after `x = ...`, a last bare `return`;
* `x = a.b` for reading `a.b`, if `x` is bound once and nothing between that line and the last use of `x` can rebind
  `a`, store an attribute `b`, or change `a` by a call (see `aliases._blocks_alias`).

What is left is compared exactly: order of statements, operators, constants with their types, called names, attribute
names, defaults, decorators. When in doubt two spellings get two fingerprints: a false alarm costs a reader a minute,
a hidden change costs wrong numbers.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from runtime.fingerprint.canonical import Canonical
from runtime.fingerprint.scopes import FUNCTIONS, Kind, Scope, nested_blocks

Value: TypeAlias = ast.Assign | ast.AnnAssign | ast.AugAssign
Method: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
"""A function, a method or a class."""
Definition: TypeAlias = Method | Value
"""What has a fingerprint: a function, a method, a class, or an assignment."""

SCHEME = "1"
"""Version of the canonical form, part of every digest: fingerprints of two schemes never compare equal by chance."""


def fingerprint(node: Definition) -> str:
    """Returns the digest of the meaning of one upstream function, method, class or assignment: 16 hex characters.

    The tree is read, never changed. Line numbers play no part, so the digest does not depend on where the definition
    stands in its file.
    """
    canonical = Canonical()
    canonical.statement(node, Scope(Kind.MODULE, None))
    return _digest("\n".join(canonical.out))


def spelling(node: Definition, source: str) -> str:
    """Returns the digest of the text of one definition: 16 hex characters.

    `source` is the text that `node` was parsed from. Everything counts, comments and layout included, from the first
    decorator to the last line; only white space at the end of lines does not. The members that `methods` took out of a
    class are left out, and so are the blank lines around them.
    """
    lines = _lines(source)
    own = set(_extent(node))
    if isinstance(node, _ClassLevel):
        for member in node.members:
            own.difference_update(_extent(member))
        own = {number for number in own if lines[number - 1].strip()}
    return _digest("\n".join(lines[number - 1].rstrip() for number in sorted(own)))


def methods(tree: ast.Module) -> dict[str, Method]:
    """Returns the definitions of a module by qualified name, in the order of the file.

    `"function"` and `"Class.method"` map to the node; `"Class"` maps to the class without its methods and nested
    classes, i.e. bases, decorators, keywords and class attributes, so that a change in a method is reported once.
    Definitions under `if` and `try` are found too. A name that is defined again (a property's setter, the other branch
    of an `if`) gets `#2`, `#3`, ... Functions inside functions are part of the function that holds them.
    """
    found: dict[str, Method] = {}
    _collect(tree.body, "", found)
    return found


def definitions(tree: ast.Module) -> dict[str, Definition]:
    """Returns what `methods` does, and the assignments to names of the module, by those names.

    A name that is assigned again, or an item or attribute of it, gets `#2`, `#3`, ...; what a call changes does not
    count.
    """
    found: dict[str, Definition] = {**methods(tree)}
    _collect_values(tree.body, found)
    return found


def _collect_values(body: Iterable[ast.stmt], found: dict[str, Definition]) -> None:
    for statement in body:
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for name in dict.fromkeys(name for target in targets for name in _assigned(target)):
                found[_unused(name, found)] = statement
        elif not isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
            for nested in nested_blocks(statement):
                _collect_values(nested, found)


def _assigned(target: ast.expr) -> Iterator[str]:
    """The names that an assignment binds, or of which it changes an item or an attribute."""
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _assigned(element)
    elif isinstance(target, ast.Subscript | ast.Attribute | ast.Starred):
        yield from _assigned(target.value)
    elif isinstance(target, ast.Name):
        yield target.id


def _collect(body: Iterable[ast.stmt], prefix: str, found: dict[str, Method]) -> None:
    for statement in body:
        if isinstance(statement, FUNCTIONS):
            found[_unused(prefix + statement.name, found)] = statement
        elif isinstance(statement, ast.ClassDef):
            name = _unused(prefix + statement.name, found)
            found[name] = _without_members(statement)
            _collect(statement.body, name + ".", found)
        else:
            for nested in nested_blocks(statement):
                _collect(nested, prefix, found)


def _unused(name: str, found: Mapping[str, Definition]) -> str:
    if name not in found:
        return name
    count = 2
    while f"{name}#{count}" in found:
        count += 1
    return f"{name}#{count}"


class _ClassLevel(ast.ClassDef):
    """A class without its methods and nested classes, which it remembers in `members` for their place in the text."""

    members: Sequence[Definition]


def _without_members(node: ast.ClassDef) -> ast.ClassDef:
    members = [statement for statement in node.body if isinstance(statement, (*FUNCTIONS, ast.ClassDef))]
    copy = _ClassLevel(
        name=node.name,
        bases=node.bases,
        keywords=node.keywords,
        body=[statement for statement in node.body if statement not in members],
        decorator_list=node.decorator_list,
    )
    copy.members = members
    return ast.copy_location(copy, node)


def _extent(node: Definition) -> range:
    """The lines of a definition, decorators included."""
    decorators: Sequence[ast.expr] = getattr(node, "decorator_list", ())
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return range(first, (node.end_lineno or node.lineno) + 1)


def text_digest(content: bytes) -> str:
    """Returns the digest of a whole file of the user's, whose line ends depend on where it was checked out: 16 hex
    characters of its sha256.
    """
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()[:16]


def _digest(text: str) -> str:
    return hashlib.blake2b(f"{SCHEME}\n{text}".encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@lru_cache(maxsize=4)
def _lines(source: str) -> tuple[str, ...]:
    # Not str.splitlines: the parser ends lines at \n, \r\n and \r alone, not at form feeds or Unicode separators.
    return tuple(source.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
