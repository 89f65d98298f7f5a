"""The canonical form of a definition as a list of tokens."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence

from runtime.fingerprint.aliases import propagate
from runtime.fingerprint.blocks import (
    canonical_block,
    is_bare_return,
    without_last,
    without_negative_operator,
    without_not,
)
from runtime.fingerprint.scopes import (
    COMPREHENSIONS,
    FUNCTIONS,
    SCOPED,
    Comprehension,
    Function,
    Scope,
    bound_by_string,
    class_scope,
    comprehension_scope,
    function_scope,
)

DOCUMENTATION_DECORATORS = frozenset(
    {
        "add_code_sample_docstrings",
        "add_end_docstrings",
        "add_start_docstrings",
        "add_start_docstrings_to_model_forward",
        "auto_docstring",
        "replace_return_docstrings",
    }
)
"""Upstream decorators that write `__doc__` and nothing else."""
_ORDERED_CALLS = frozenset({"dict", "OrderedDict"})
"""Callables that make the order of their keyword arguments visible."""
_IGNORED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


class Canonical:
    """Writes the canonical form of a definition into `out`, one token per item."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self._next_number = 0

    # -- names

    def _name(self, name: str, scope: Scope) -> str:
        owner = scope.lookup(name)
        if owner is None or owner.keeps_names or name in owner.fixed:
            return name
        number = owner.numbers.get(name)
        if number is None:
            number = owner.numbers[name] = self._next_number
            self._next_number += 1
        return f"%{number}"

    # -- statements

    def body(self, statements: Sequence[ast.stmt], scope: Scope) -> None:
        self.out.append("{")
        while statements:
            tail: Sequence[ast.stmt] = ()
            for statement in statements:
                if id(statement) in scope.dropped:
                    continue
                if isinstance(statement, ast.If) and statement is statements[-1]:
                    # The long side of early returns: go on in this loop.
                    self.out.append("If")
                    self.expression(statement.test, scope)
                    self.body(statement.body, scope)
                    self.out.append("else")
                    tail = statement.orelse
                else:
                    self.statement(statement, scope)
            statements = tail
        self.out.append("}")

    def statement(self, node: ast.stmt, scope: Scope) -> None:
        if isinstance(node, FUNCTIONS):
            self._function(node, scope)
        elif isinstance(node, ast.ClassDef):
            self._class(node, scope)
        elif isinstance(node, ast.If):
            self.out.append("If")
            self.expression(node.test, scope)
            self.body(node.body, scope)
            self.body(node.orelse, scope)
        elif isinstance(node, ast.AnnAssign):
            self.out.append("AnnAssign")
            self.expression(node.target, scope)
            self._annotation(node.annotation, scope)
            if node.value is not None:
                self.expression(node.value, scope)
        else:
            self._generic(node, scope)

    def _function(self, node: Function, scope: Scope) -> None:
        inner = function_scope(node.args, node.body, scope)
        self.out.append(type(node).__name__)
        self.out.append(self._name(node.name, scope))
        self._decorators(node.decorator_list, scope)
        self._arguments(node.args, scope, inner)
        if inner.has_yield:
            self.out.append("generator")
        body = without_last(canonical_block(node.body, inner), is_bare_return)
        if not inner.keeps_names:
            propagate(body, inner)
        self.body(body, inner)

    def _class(self, node: ast.ClassDef, scope: Scope) -> None:
        inner = class_scope(node, scope)
        self.out.append("ClassDef")
        self.out.append(self._name(node.name, scope))
        self._decorators(node.decorator_list, scope)
        for base in node.bases:
            self.expression(base, scope)
        self._keywords(node.keywords, scope, reorder=True)
        self.body(canonical_block(node.body, inner), inner)

    def _decorators(self, decorators: Sequence[ast.expr], scope: Scope) -> None:
        for decorator in decorators:
            if only_documents(decorator):
                continue
            self.out.append("@")
            self.expression(decorator, scope)

    def _arguments(self, node: ast.arguments, scope: Scope, inner: Scope) -> None:
        self.out.append("(")
        self.out.extend(argument.arg for argument in node.posonlyargs)
        self.out.append("/")
        self.out.extend(argument.arg for argument in node.args)
        if node.vararg is not None:
            self.out.append("*" + self._name(node.vararg.arg, inner))
        self.out.append("*")
        self.out.extend(argument.arg for argument in node.kwonlyargs)
        if node.kwarg is not None:
            self.out.append("**" + self._name(node.kwarg.arg, inner))
        for default in (*node.defaults, *node.kw_defaults):
            self.out.append("=")
            if default is not None:
                self.expression(default, scope)
        self.out.append(")")

    def _annotation(self, node: ast.expr, scope: Scope) -> None:
        """An annotation that the program reads; `Optional[X]`, `Union[X, None]` and `"X | None"` are `X | None`."""
        members: list[list[str]] = []
        for member in _union_members(node):
            before, self.out = self.out, []
            self.expression(member, scope)
            if self.out not in members:
                members.append(self.out)
            self.out = before
        self.out.append("|")
        for tokens in sorted(members):
            self.out.extend(tokens)
        self.out.append("|")

    # -- expressions

    def expression(self, node: ast.expr, scope: Scope) -> None:
        kind = type(node)
        if kind is ast.Name:
            assert isinstance(node, ast.Name)
            owner = scope.lookup(node.id)
            if owner is not None and node.id in owner.aliases:
                self.expression(owner.aliases[node.id], owner)
            else:
                self.out.append(self._name(node.id, scope))
        elif kind is ast.Constant:
            assert isinstance(node, ast.Constant)
            self.out.append(f"{type(node.value).__name__} {node.value!r}")
        elif kind is ast.Attribute:
            assert isinstance(node, ast.Attribute)
            self.out.append("." + node.attr)
            self.expression(node.value, scope)
        elif kind is ast.Call:
            assert isinstance(node, ast.Call)
            self.out.append("Call(")
            self.expression(node.func, scope)
            for argument in node.args:
                self.expression(argument, scope)
            ordered = isinstance(node.func, ast.Name) and node.func.id in _ORDERED_CALLS
            self._keywords(node.keywords, scope, reorder=not ordered)
            self.out.append(")")
        elif kind is ast.BinOp:
            assert isinstance(node, ast.BinOp)
            self._binary(node, scope)
        elif kind is ast.IfExp:
            assert isinstance(node, ast.IfExp)
            test, negated = without_not(node.test)
            self.out.append("IfExp")
            self.expression(test, scope)
            self.expression(node.orelse if negated else node.body, scope)
            self.expression(node.body if negated else node.orelse, scope)
        elif kind is ast.Compare:
            assert isinstance(node, ast.Compare)
            plain = without_negative_operator(node)
            if plain is not None:
                self.out.append("Not")
                self._generic(plain, scope)
            else:
                self._generic(node, scope)
        elif kind is ast.UnaryOp:
            assert isinstance(node, ast.UnaryOp)
            self.out.append(type(node.op).__name__)
            self.expression(node.operand, scope)
        elif kind is ast.Lambda:
            assert isinstance(node, ast.Lambda)
            inner = function_scope(node.args, [node.body], scope)
            self.out.append("Lambda")
            self._arguments(node.args, scope, inner)
            self.expression(node.body, inner)
        elif kind in SCOPED:
            assert isinstance(node, COMPREHENSIONS)
            self._comprehension(node, scope)
        else:
            self._generic(node, scope)

    def _binary(self, node: ast.BinOp, scope: Scope) -> None:
        # Long sums nest to the left: unroll them.
        spine = [node]
        left = node.left
        while isinstance(left, ast.BinOp):
            spine.append(left)
            left = left.left
        self.out.extend(type(part.op).__name__ for part in spine)
        self.expression(left, scope)
        for part in reversed(spine):
            self.expression(part.right, scope)

    def _comprehension(self, node: Comprehension, scope: Scope) -> None:
        inner = comprehension_scope(node, scope)
        self.out.append(type(node).__name__ + "(")
        for index, clause in enumerate(node.generators):
            self.out.append("async for" if clause.is_async else "for")
            self.expression(clause.iter, inner if index else scope)  # the first iterable is evaluated outside
            self.expression(clause.target, inner)
            for condition in clause.ifs:
                self.out.append("if")
                self.expression(condition, inner)
        if isinstance(node, ast.DictComp):
            self.expression(node.key, inner)
            self.expression(node.value, inner)
        else:
            self.expression(node.elt, inner)
        self.out.append(")")

    def _keywords(self, keywords: Sequence[ast.keyword], scope: Scope, reorder: bool) -> None:
        for keyword in _ordered(keywords) if reorder and len(keywords) > 1 else keywords:
            self.out.append("**" if keyword.arg is None else keyword.arg + "=")
            self.expression(keyword.value, scope)

    def _generic(self, node: ast.AST, scope: Scope) -> None:
        out = self.out
        out.append(type(node).__name__)
        if isinstance(node, ast.alias) and node.asname is None and "." in node.name:
            out.append("top")  # `import a.b` binds a, `import a.b as x` binds a.b
        for name in _FIELDS[type(node)]:
            value = getattr(node, name, None)
            if isinstance(value, ast.expr):
                self.expression(value, scope)
            elif isinstance(value, list):
                if name in ("body", "orelse", "finalbody"):
                    self.body(value, scope)
                    continue
                out.append("[")
                for item in value:
                    if isinstance(item, ast.expr):
                        self.expression(item, scope)
                    elif isinstance(item, ast.AST):
                        self._generic(item, scope)
                    else:
                        out.append(repr(item))
                out.append("]")
            elif isinstance(value, ast.AST):
                self._generic(value, scope)
            elif name in _BINDING_FIELDS.get(type(node), ()) and bound_by_string(node):
                out.extend(self._name(bound, scope) for bound in bound_by_string(node))
            else:
                out.append(repr(value))


_BINDING_FIELDS: Mapping[type[ast.AST], tuple[str, ...]] = {
    ast.alias: ("asname",),
    ast.ExceptHandler: ("name",),
    ast.MatchAs: ("name",),
    ast.MatchStar: ("name",),
    ast.MatchMapping: ("rest",),
}
"""Fields that hold the name of a variable as a string."""


_FIELDS: Mapping[type[ast.AST], tuple[str, ...]] = {
    kind: tuple(name for name in kind._fields if name not in _IGNORED_FIELDS)
    for kind in vars(ast).values()
    if isinstance(kind, type) and issubclass(kind, ast.AST)
}
"""The fields of every kind of node that carry meaning."""


def _union_members(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        try:
            node = ast.parse(node.value, mode="eval").body
        except SyntaxError:
            yield node
            return
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        yield from _union_members(node.left)
        yield from _union_members(node.right)
        return
    if isinstance(node, ast.Subscript):
        name = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", None)
        if name == "Optional":
            yield from _union_members(node.slice)
            yield ast.Constant(value=None)
            return
        if name == "Union":
            for member in node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]:
                yield from _union_members(member)
            return
    yield node


def _ordered(keywords: Sequence[ast.keyword]) -> Sequence[ast.keyword]:
    """Keyword arguments in canonical order: by name as far as their evaluation has no order.

    Without calls among the values everything is a plain read, and all are sorted (`**kwargs` last). With calls, only
    constants and names move: attributes and operations stay where they are relative to the calls.
    """
    levels = [_evaluation(keyword.value) for keyword in keywords]
    if max(levels) == _BINDS:
        return keywords
    movable = _PURE if max(levels) <= _PURE else _CONSTANT
    anchored = [k for k, level in zip(keywords, levels, strict=True) if level > movable or k.arg is None]
    free = [k for k, level in zip(keywords, levels, strict=True) if level <= movable and k.arg is not None]
    return [*sorted(free, key=lambda keyword: str(keyword.arg)), *anchored]


_CONSTANT, _PURE, _EFFECT, _BINDS = range(4)
_OPERATIONS = (
    ast.Attribute, ast.BinOp, ast.BoolOp, ast.Compare, ast.Dict, ast.FormattedValue, ast.IfExp, ast.JoinedStr,
    ast.List, ast.Set, ast.Slice, ast.Starred, ast.Subscript, ast.Tuple, ast.UnaryOp,
)  # fmt: skip


def _evaluation(node: ast.expr) -> int:
    """What evaluating an expression may do: nothing at all, read, anything, or bind a local (`:=`)."""
    if isinstance(node, (ast.Constant, ast.Name)):
        return _CONSTANT
    level = _PURE if isinstance(node, _OPERATIONS) else _EFFECT
    for part in ast.walk(node):
        if isinstance(part, ast.NamedExpr):
            return _BINDS
        if (
            level == _PURE
            and isinstance(part, ast.expr)
            and not isinstance(part, (ast.Constant, ast.Name, *_OPERATIONS))
        ):
            level = _EFFECT
    return level


def only_documents(decorator: ast.expr) -> bool:
    """Whether a decorator writes documentation and does nothing else."""
    function = decorator.func if isinstance(decorator, ast.Call) else decorator
    return isinstance(function, ast.Name) and function.id in DOCUMENTATION_DECORATORS
