"""Small, pure helpers over LibCST nodes: walking, reading, building from templates, replacing by identity."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from typing import TypeVar

import libcst as cst

Node = TypeVar("Node", bound=cst.CSTNode)
_EMPTY = cst.Module([])
_ATOMS = (cst.Name, cst.Attribute, cst.Call, cst.Subscript, cst.SimpleString)

Replacement = cst.CSTNode | cst.RemovalSentinel | cst.FlattenSentinel[cst.BaseStatement]


# Fields that hold layout and punctuation: nothing the compiler reasons about, and most of a tree's nodes.
_LAYOUT = (
    "whitespace",
    "leading_lines",
    "lines_after",
    "lpar",
    "rpar",
    "comma",
    "header",
    "footer",
    "indent",
    "dot",
    "equal",
    "colon",
    "semicolon",
    "lbracket",
    "rbracket",
    "lbrace",
    "rbrace",
    "trailing",
    "asterisk",
    "newline",
)


@cache
def _fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    return tuple(
        f.name for f in reversed(dataclasses.fields(kind)) if not f.name.startswith(_LAYOUT) and f.name != "encoding"
    )


_SUBCLASSES: dict[tuple[type, type], bool] = {}


def _is_a(kind: type, wanted: type) -> bool:
    """``issubclass``, remembered: LibCST's abstract base classes make every ``isinstance`` slow."""
    known = _SUBCLASSES.get((kind, wanted))
    if known is None:
        known = _SUBCLASSES[kind, wanted] = issubclass(kind, wanted)
    return known


def below(node: cst.CSTNode) -> list[cst.CSTNode]:
    """The node's direct children but layout, last one first."""
    result: list[cst.CSTNode] = []
    for name in _fields(type(node)):
        value = getattr(node, name)
        kind = type(value)
        if kind is tuple or kind is list:
            result.extend(v for v in reversed(value) if _is_a(type(v), cst.CSTNode))
        elif _is_a(kind, cst.CSTNode):
            result.append(value)
    return result


def walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    """The node and everything below it but layout, in source order."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield current
        stack.extend(below(current))


def find(node: cst.CSTNode, kind: type[Node]) -> Iterator[Node]:
    """All nodes of one type, in source order."""
    if isinstance(node, cst.IndentedBlock):
        yield from _found(node, kind)  # type: ignore[misc]
        return
    for found in walk(node):
        if _is_a(type(found), kind):
            yield found  # type: ignore[misc]


@lru_cache(maxsize=1 << 13)
def _found(block: cst.IndentedBlock, kind: type[cst.CSTNode]) -> tuple[cst.CSTNode, ...]:
    """`find`, remembered: every rule looks at the same few bodies several times, and for the same few types."""
    return tuple(node for node in _all_below(block) if _is_a(type(node), kind))


@lru_cache(maxsize=1024)
def _all_below(block: cst.IndentedBlock) -> tuple[cst.CSTNode, ...]:
    """`walk`, remembered."""
    return tuple(walk(block))


@lru_cache(maxsize=1 << 15)
def code(node: cst.CSTNode) -> str:
    """The node's source text, without surrounding blank lines and, where they say nothing, parentheses."""
    if isinstance(node, _ATOMS) and node.lpar:
        bare = _EMPTY.code_for_node(node.with_changes(lpar=(), rpar=())).strip()
        if "\n" not in bare:
            return bare
    return _EMPTY.code_for_node(node).strip()


@lru_cache(maxsize=1 << 12)
def one_line(node: cst.CSTNode) -> str:
    """The node's text as Python itself prints it: without comments, line breaks and needless parentheses."""
    return ast.unparse(ast.parse(code(node)))


def dotted(node: cst.CSTNode) -> str | None:
    """``a.b.c`` for a chain of names, else None."""
    if isinstance(node, cst.Name):
        return node.value
    if isinstance(node, cst.Attribute):
        base = dotted(node.value)
        return None if base is None else f"{base}.{node.attr.value}"
    return None


def self_attribute(node: cst.CSTNode) -> str | None:
    """``x`` for ``self.x``, else None."""
    if isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name) and node.value.value == "self":
        return node.attr.value
    return None


@lru_cache(maxsize=1 << 12)
def names(node: cst.CSTNode) -> frozenset[str]:
    """Every bare name read or bound below the node; attribute names and keyword labels are not names."""
    result: set[str] = set()
    stack: list[cst.CSTNode] = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, cst.Name):
            result.add(current.value)
        elif isinstance(current, cst.Attribute | cst.Arg):
            stack.append(current.value)
        elif isinstance(current, cst.Param):
            result.add(current.name.value)
            stack.extend(c for c in (current.default, current.annotation) if c is not None)
        else:
            stack.extend(below(current))
    return frozenset(result)


def truth(test: cst.BaseExpression, known: Callable[[cst.BaseExpression], bool | None]) -> bool | None:
    """What a test comes to, through ``not``, ``and`` and ``or``; None where what is ``known`` of its parts does not
    say."""
    if isinstance(test, cst.UnaryOperation) and isinstance(test.operator, cst.Not):
        inner = truth(test.expression, known)
        return None if inner is None else not inner
    if isinstance(test, cst.BooleanOperation):
        decided = isinstance(test.operator, cst.Or)
        sides = (truth(test.left, known), truth(test.right, known))
        if decided in sides:
            return decided
        return None if None in sides else not decided
    return known(test)


def reads(node: cst.CSTNode, wanted: Container[str]) -> list[cst.Name]:
    """Where bare names of a set occur below the node, in source order; attribute names and keyword labels do not
    count."""
    result: list[cst.Name] = []
    stack: list[cst.CSTNode] = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, cst.Name):
            result += [current] if current.value in wanted else []
        elif isinstance(current, cst.Attribute | cst.Arg):
            stack.append(current.value)
        else:
            stack.extend(reversed(below(current)))
    return result


def same(left: cst.CSTNode, right: cst.CSTNode) -> bool:
    """Same code up to whitespace and comments."""
    return code(left) == code(right) or left.deep_equals(right)


def arguments(call: cst.Call) -> dict[str, cst.Arg]:
    """Keyword arguments by label."""
    return {arg.keyword.value: arg for arg in call.args if arg.keyword is not None}


def with_keywords(call: cst.Call, values: Mapping[str, str]) -> cst.Call:
    """The call with keywords added before a trailing ``**kwargs``; present ones are left as they are."""
    present = arguments(call)
    new = [keyword_argument(name, value) for name, value in values.items() if name not in present]
    if not new:
        return call
    head = [arg for arg in call.args if arg.star != "**"]
    tail = [arg for arg in call.args if arg.star == "**"]
    return call.with_changes(args=_separated([*head, *new, *tail]))


def without_keywords(call: cst.Call, labels: Sequence[str]) -> cst.Call:
    return call.with_changes(
        args=_separated([arg for arg in call.args if arg.keyword is None or arg.keyword.value not in labels])
    )


def keyword_argument(name: str, value: str) -> cst.Arg:
    return cst.Arg(
        keyword=cst.Name(name),
        value=expression(value),
        equal=cst.AssignEqual(cst.SimpleWhitespace(""), cst.SimpleWhitespace("")),
    )


def _separated(args: Sequence[cst.Arg]) -> list[cst.Arg]:
    """Arguments with plain separators; the formatter lays them out."""
    comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
    plain = cst.SimpleWhitespace("")
    return [
        arg.with_changes(
            comma=comma if index < len(args) - 1 else cst.MaybeSentinel.DEFAULT, whitespace_after_arg=plain
        )
        for index, arg in enumerate(args)
    ]


@cache
def _parsed_expression(text: str) -> cst.BaseExpression:
    return cst.parse_expression(text)


def expression(text: str, **holes: cst.BaseExpression) -> cst.BaseExpression:
    """A template: ``expression("last_token(H, P)", H=node, P=other)``. Every result is a fresh tree."""
    tree = _parsed_expression(text).deep_clone()
    return _filled(tree, holes)


def statement(text: str, **holes: cst.BaseExpression) -> cst.BaseStatement:
    """A statement template with holes, like `expression`."""
    parsed = cst.parse_statement(text)
    assert isinstance(parsed, cst.BaseStatement)
    return _filled(parsed, holes)


class _Fill(cst.CSTTransformer):
    def __init__(self, holes: Mapping[str, cst.BaseExpression]) -> None:
        super().__init__()
        self.holes = holes

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        hole = self.holes.get(original_node.value)
        return updated_node if hole is None else hole.deep_clone()

    def visit_Attribute_attr(self, node: cst.Attribute) -> None:
        return None


def _filled(tree: Node, holes: Mapping[str, cst.BaseExpression]) -> Node:
    if not holes:
        return tree
    result = tree.visit(_Fill(holes))
    assert isinstance(result, cst.CSTNode)
    return result


def replaced(tree: Node, replacements: Mapping[cst.CSTNode, Replacement]) -> Node:
    """The tree with nodes (by identity) replaced or removed. A node that is not in the tree is an internal error.

    Only the nodes on the way to an edit are made anew: everything else stays the object that it was, so that what is
    known of it (`code`, `names`, `find`) stays known.
    """
    if not replacements:
        return tree
    wanted = {id(node): new for node, new in replacements.items()}
    result = _replaced(tree, wanted)
    if wanted:  # an edit inside a replaced node would be lost: it counts as missing
        raise AssertionError(
            f"{len(wanted)} node(s) to replace are not in the tree, or lie inside another replaced node"
        )
    assert isinstance(result, type(tree))
    return result


def _replaced(node: cst.CSTNode, wanted: dict[int, Replacement]) -> Replacement:
    if id(node) in wanted:
        return wanted.pop(id(node))
    changes: dict[str, object] = {}
    for name in _fields(type(node)):
        if not wanted:
            break
        value = getattr(node, name)
        kind = type(value)
        if kind is tuple or kind is list:
            new = _replaced_sequence(value, wanted)
            if new is not None:
                changes[name] = new
        elif _is_a(kind, cst.CSTNode):
            one = _replaced(value, wanted)
            if one is not value:
                changes[name] = None if isinstance(one, cst.RemovalSentinel) else one
    if not changes:
        return node
    if isinstance(node, cst.SimpleStatementLine | cst.IndentedBlock) and changes.get("body") == ():
        # a statement without parts goes with them; a block always has one
        return cst.RemoveFromParent() if isinstance(node, cst.SimpleStatementLine) else _emptied(node)
    return node.with_changes(**changes)


def _replaced_sequence(values: Sequence[object], wanted: dict[int, Replacement]) -> tuple[object, ...] | None:
    """The new sequence, None when nothing in it changes."""
    result: list[object] = []
    changed = False
    for value in values:
        new = _replaced(value, wanted) if wanted and isinstance(value, cst.CSTNode) else value
        changed = changed or new is not value
        if isinstance(new, cst.FlattenSentinel):
            result += list(new)
        elif not isinstance(new, cst.RemovalSentinel):
            result.append(new)
    return tuple(result) if changed else None


def _emptied(block: cst.IndentedBlock) -> cst.IndentedBlock:
    return block.with_changes(body=[cst.SimpleStatementLine([cst.Pass()])])


def parameters(function: cst.FunctionDef) -> tuple[str, ...]:
    """Names of the parameters that can be passed by keyword, ``self`` left out."""
    params = function.params
    every = [*params.posonly_params, *params.params, *params.kwonly_params]
    return tuple(p.name.value for p in every if p.name.value != "self")


def keyword_catch_all(function: cst.FunctionDef) -> str | None:
    """The name of ``**kwargs``, if any."""
    star = function.params.star_kwarg
    return None if star is None else star.name.value


def says_nothing(line: cst.CSTNode) -> bool:
    """Whether a line is a remark, a docstring among them, or ``pass``."""
    if not isinstance(line, cst.SimpleStatementLine):
        return False
    return all(
        isinstance(small, cst.Pass) or (isinstance(small, cst.Expr) and isinstance(small.value, cst.BaseString))
        for small in line.body
    )


def statements(function: cst.FunctionDef | cst.If | cst.For | cst.With | cst.Else) -> list[cst.BaseStatement]:
    """The statements of a block, without those that say nothing."""
    body = function.body
    lines = body.body if isinstance(body, cst.IndentedBlock) else ()
    return [s for s in lines if isinstance(s, cst.BaseStatement) and not says_nothing(s)]


# Where a statement can hold others; expressions never do.
_SUITES = ("body", "orelse", "handlers", "finalbody", "cases")


def every_statement(node: cst.CSTNode) -> Iterator[cst.BaseStatement]:
    """All statements of a node but those that say nothing, itself and nested ones too, in source order."""
    if says_nothing(node):
        return
    if _is_a(type(node), cst.BaseStatement):
        yield node  # type: ignore[misc]
        if isinstance(node, cst.SimpleStatementLine):
            return
    for suite in _SUITES:
        inner = getattr(node, suite, None)
        if isinstance(inner, tuple | list):
            for one in inner:
                yield from every_statement(one)
        elif isinstance(inner, cst.CSTNode) and not isinstance(inner, cst.BaseExpression):
            yield from every_statement(inner)


def assignment(node: cst.CSTNode) -> tuple[cst.BaseExpression, cst.BaseExpression] | None:
    """``(target, value)`` of a one-target ``x = v`` or ``x: T = v`` line."""
    if isinstance(node, cst.SimpleStatementLine) and len(node.body) == 1:
        small = node.body[0]
        if isinstance(small, cst.Assign) and len(small.targets) == 1:
            return small.targets[0].target, small.value
        if isinstance(small, cst.AnnAssign) and small.value is not None:
            return small.target, small.value
    return None


def docstring_removed(function: cst.FunctionDef) -> cst.FunctionDef:
    body = function.body
    if function.get_docstring() is None or not isinstance(body, cst.IndentedBlock):
        return function
    rest = body.body[1:] or [cst.parse_statement("pass")]
    return function.with_changes(body=body.with_changes(body=rest))


def leading_lines(line: cst.CSTNode) -> Sequence[cst.EmptyLine]:
    """Blank lines and comments in front of a statement."""
    found: Sequence[cst.EmptyLine] = getattr(line, "leading_lines", ())
    return found
