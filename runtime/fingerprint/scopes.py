"""Names and scopes of one definition, found lazily on the standard library's syntax tree."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension: TypeAlias = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_READS_LOCALS = frozenset({"dir", "eval", "exec", "locals", "vars"})
"""Builtins that see the names of local variables: a function that calls one keeps its names."""


class Kind:
    """Kinds of scope. Plain strings: this is the innermost loop."""

    MODULE = "module"
    CLASS = "class"
    FUNCTION = "function"
    COMPREHENSION = "comprehension"


@dataclass(slots=True, eq=False)
class Scope:
    """One Python scope: what it binds and, as the canonical form is written, the numbers of its locals."""

    kind: str
    parent: Scope | None
    bound: Mapping[str, int] = field(default_factory=dict)  # name -> how often it is bound
    fixed: frozenset[str] = frozenset()  # names that must stay: parameters
    outer: frozenset[str] = frozenset()  # declared global
    enclosing: frozenset[str] = frozenset()  # declared nonlocal
    captured: frozenset[str] = frozenset()  # read or written by a nested function
    has_yield: bool = False
    keeps_names: bool = False
    numbers: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, ast.expr] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)  # id() of statements that propagation made superfluous

    def lookup(self, name: str) -> Scope | None:
        """The scope that a name refers to, None for a global or builtin."""
        scope: Scope | None = self
        while scope is not None:
            if scope.kind != Kind.CLASS or scope is self:
                if name in scope.outer:
                    return None
                if name in scope.bound and name not in scope.enclosing:
                    return scope
            scope = scope.parent
        return None


class _Bindings:
    """What one function or class body binds, found in a single walk that stays out of nested scopes."""

    def __init__(self) -> None:
        self.bound: Counter[str] = Counter()
        self.outer: set[str] = set()
        self.enclosing: set[str] = set()
        self.captured: set[str] = set()
        self.keeps_names = False
        self.has_yield = False
        self.rebound: set[str] = set()  # declared nonlocal by a nested function

    def visit(self, nodes: Iterable[ast.AST]) -> None:
        stack = list(nodes)
        while stack:
            node = stack.pop()
            kind = type(node)
            if kind is ast.Name:
                assert isinstance(node, ast.Name)
                if type(node.ctx) is not ast.Load:
                    self.bound[node.id] += 1
                continue
            if kind is ast.Constant:
                continue
            if kind in SCOPED:
                self._nested(node, stack)
                continue
            names = bound_by_string(node)
            for name in names:
                self.bound[name] += 1
            if kind is ast.Global:
                assert isinstance(node, ast.Global)
                self.outer.update(node.names)
            elif kind is ast.Nonlocal:
                assert isinstance(node, ast.Nonlocal)
                self.enclosing.update(node.names)
            elif kind is ast.Call:
                assert isinstance(node, ast.Call)
                if isinstance(node.func, ast.Name) and node.func.id in _READS_LOCALS:
                    self.keeps_names = True
            elif kind is ast.Yield or kind is ast.YieldFrom:
                self.has_yield = True
            for value in node.__dict__.values():
                if isinstance(value, ast.AST):
                    stack.append(value)
                elif type(value) is list:
                    stack.extend(item for item in value if isinstance(item, ast.AST))

    def _nested(self, node: ast.AST, stack: list[ast.AST]) -> None:
        if isinstance(node, COMPREHENSIONS):
            # Runs at once and binds its targets for itself; but `:=` inside binds out here.
            for inner in ast.walk(node):
                if isinstance(inner, ast.NamedExpr):
                    self.bound[inner.target.id] += 1
                elif isinstance(inner, ast.Lambda):
                    self.captured |= _free_names(inner)
            if isinstance(node, ast.GeneratorExp):
                self.captured |= _free_names(node)  # a generator runs later, all but its first iterable
            return
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            self.bound[node.name] += 1
            stack.extend(node.decorator_list)
        if isinstance(node, ast.ClassDef):
            stack.extend(node.bases)
            stack.extend(keyword.value for keyword in node.keywords)
        elif isinstance(node, (*FUNCTIONS, ast.Lambda)):
            stack.extend(node.args.defaults)
            stack.extend(default for default in node.args.kw_defaults if default is not None)
        self.captured |= _free_names(node)
        for inner in ast.walk(node):
            if isinstance(inner, ast.Nonlocal):
                self.rebound.update(inner.names)


SCOPED: frozenset[type[ast.AST]] = frozenset({*FUNCTIONS, *COMPREHENSIONS, ast.Lambda, ast.ClassDef})


def bound_by_string(node: ast.AST) -> tuple[str, ...]:
    """Names that a node binds without a Name node of its own (definitions apart)."""
    if isinstance(node, ast.alias):
        return (node.asname or node.name.split(".")[0],)
    if isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
        return (node.name,) if node.name else ()
    if isinstance(node, ast.MatchMapping):
        return (node.rest,) if node.rest else ()
    return ()


def _free_names(node: ast.AST) -> set[str]:
    """Names that a nested scope takes from outside; for a class, all names in it (too many rather than too few)."""
    if isinstance(node, ast.GeneratorExp):
        first, *others = node.generators
        parts = [node.elt, *first.ifs, *others]
        names = {inner.id for part in parts for inner in ast.walk(part) if isinstance(inner, ast.Name)}
        return names - comprehension_names(node)
    names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    if not isinstance(node, (*FUNCTIONS, ast.Lambda)):
        return names
    bindings = _Bindings()
    bindings.visit(node.body if isinstance(node.body, list) else [node.body])
    own = set(bindings.bound) | {argument.arg for argument in _arguments(node.args)}
    own -= bindings.outer | bindings.enclosing
    return (names - own) | (bindings.captured - own) | bindings.enclosing


def _target_names(target: ast.expr) -> Iterator[ast.Name]:
    return (node for node in ast.walk(target) if isinstance(node, ast.Name) and type(node.ctx) is ast.Store)


def _arguments(arguments: ast.arguments) -> Iterator[ast.arg]:
    yield from arguments.posonlyargs
    yield from arguments.args
    if arguments.vararg is not None:
        yield arguments.vararg
    yield from arguments.kwonlyargs
    if arguments.kwarg is not None:
        yield arguments.kwarg


def function_scope(arguments: ast.arguments, body: Sequence[ast.AST], parent: Scope) -> Scope:
    bindings = _Bindings()
    bindings.visit(body)
    positional = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    for argument in _arguments(arguments):
        bindings.bound[argument.arg] += 1
    bindings.bound.update(name for name in bindings.rebound if name in bindings.bound)
    return Scope(
        Kind.FUNCTION,
        parent,
        bound=bindings.bound,
        fixed=frozenset((*positional, *(argument.arg for argument in arguments.kwonlyargs))),
        outer=frozenset(bindings.outer),
        enclosing=frozenset(bindings.enclosing),
        captured=frozenset(bindings.captured),
        has_yield=bindings.has_yield,
        keeps_names=bindings.keeps_names,
    )


def class_scope(node: ast.ClassDef, parent: Scope) -> Scope:
    bindings = _Bindings()
    bindings.visit(node.body)
    return Scope(Kind.CLASS, parent, bindings.bound, outer=frozenset(bindings.outer), keeps_names=True)


def comprehension_scope(node: Comprehension, parent: Scope) -> Scope:
    bound = {target.id: 1 for clause in node.generators for target in _target_names(clause.target)}
    return Scope(Kind.COMPREHENSION, parent, bound)


def comprehension_names(node: Comprehension) -> set[str]:
    return {target.id for clause in node.generators for target in _target_names(clause.target)}


def nested_blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The statement lists directly inside a compound statement that opens no scope."""
    for name in ("body", "orelse", "finalbody"):
        nested = getattr(statement, name, None)
        if nested:
            yield nested
    for handler in getattr(statement, "handlers", ()):
        yield handler.body
    for case in getattr(statement, "cases", ()):
        yield case.body
