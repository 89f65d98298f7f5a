"""Small questions about the syntax of upstream code, on the standard library's tree."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTION_NODES = (ast.FunctionDef, ast.AsyncFunctionDef)
MESSAGES = frozenset({"logger", "logging", "warnings", "print"})


def definitions(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Top-level definitions, those under `if` and `try` included."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.If, ast.Try)):
            yield from definitions((*statement.body, *statement.orelse))


def targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def arguments_of(node: FunctionNode) -> list[ast.arg]:
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` as text, None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return None if base is None else f"{base}.{node.attr}"
    return None


def root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def fills_in(test: ast.expr, body: Sequence[ast.AST], orelse: Sequence[ast.AST]) -> bool:
    """Whether a test asks if a value is None only to use another one then: `a if a is not None else b`, or
    `if a is None: a = b`."""
    if not (
        isinstance(test, ast.Compare) and isinstance(test.ops[0], (ast.Is, ast.IsNot)) and is_none(test.comparators[0])
    ):
        return False
    filled, given = (body, orelse) if isinstance(test.ops[0], ast.Is) else (orelse, body)
    tested = ast.unparse(test.left)
    if len(filled) == 1 and isinstance(filled[0], (ast.Assign, ast.AnnAssign)):
        return not given and [ast.unparse(target) for target in targets(filled[0])] == [tested]
    return len(given) == 1 and isinstance(given[0], ast.expr) and ast.unparse(given[0]) == tested


def training_only(test: ast.expr) -> bool | None:
    """True if a test holds in training only, False if it fails only in training, None if it says nothing of it.

    Training is `self.training`, an argument of that name, or that there are labels.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = training_only(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        parts = [training_only(value) for value in test.values]
        wanted = isinstance(test.op, ast.And)
        return wanted if wanted in parts else None
    if (isinstance(test, ast.Attribute) and test.attr == "training") or is_name(test, "training"):
        return True
    if isinstance(test, ast.Compare) and is_name(test.left, "labels") and is_none(test.comparators[0]):
        return isinstance(test.ops[0], ast.IsNot)
    return None


def only_complains(node: ast.If) -> bool:
    """Whether nothing happens under a test but errors and messages."""

    def complains(statement: ast.stmt) -> bool:
        if isinstance(statement, ast.Raise):
            return True
        call = statement.value if isinstance(statement, ast.Expr) else None
        return isinstance(call, ast.Call) and root(call.func) in MESSAGES

    return not node.orelse and all(complains(statement) for statement in node.body)
