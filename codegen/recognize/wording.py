"""Whether code says what a known text says, in whatever words: names of locals, order of keywords and layout apart."""

from __future__ import annotations

import ast
import copy
from collections.abc import Collection, Iterator, Sequence
from functools import cache

from runtime.fingerprint import fingerprint


def says(function: ast.FunctionDef, body: str) -> bool:
    """Whether a function with these parameters and this body would do the same, whichever side of a comparison its
    constants are on."""
    function = _Turned().visit(copy.deepcopy(function))
    known = ast.FunctionDef(
        name=function.name,
        args=function.args,
        body=ast.parse(body).body,
        decorator_list=function.decorator_list,
    )
    return fingerprint(function) == fingerprint(ast.copy_location(known, function))


class _Turned(ast.NodeTransformer):
    """``x == 1`` for ``1 == x``."""

    def visit_Compare(self, node: ast.Compare) -> ast.Compare:
        self.generic_visit(node)
        turned = _TURNED.get(type(node.ops[0])) if len(node.ops) == 1 else None
        if turned is not None and isinstance(node.left, ast.Constant):
            node.left, node.comparators, node.ops = node.comparators[0], [node.left], [turned()]
        return node


_TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
}


class Wording:
    """Reads the statements of one function as known lines, of which some names (``free``) are locals that the function
    may call otherwise: each by one name of its own throughout."""

    def __init__(self, function: ast.FunctionDef, free: Collection[str]) -> None:
        self._free = free
        self._taken = {a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)}
        self._called: dict[str, str] = {}  # the known line's name -> the function's
        self.statements = tuple(s for s in function.body if not _is_nothing(s))

    def reads_as(self, statement: ast.stmt, line: str) -> bool:
        """Whether a statement is a known line, given what earlier ones called the locals."""
        before = dict(self._called)
        if self._same(_parsed(line), statement):
            return True
        self._called = before
        return False

    def _same(self, known: object, found: object) -> bool:
        if isinstance(known, list):
            return isinstance(found, list) and self._all(known, [s for s in found if not _is_nothing(s)])
        if isinstance(found, ast.AnnAssign) and found.value is not None:
            found = ast.Assign(targets=[found.target], value=found.value)
        if not isinstance(known, ast.AST):
            return type(known) is type(found) and known == found
        if type(known) is not type(found):
            return False
        if isinstance(known, ast.Name) and isinstance(found, ast.Name):
            return self._name(known.id, found.id)
        return all(self._same(one, other) for one, other in zip(_parts(known), _parts(found), strict=True))

    def _all(self, known: Sequence[object], found: Sequence[object]) -> bool:
        return len(known) == len(found) and all(self._same(k, f) for k, f in zip(known, found, strict=True))

    def _name(self, known: str, found: str) -> bool:
        if known not in self._free:
            return known == found
        if known in self._called:
            return self._called[known] == found
        if found in self._taken or found in self._called.values():
            return False
        self._called[known] = found
        return True


@cache
def _parsed(line: str) -> ast.stmt:
    (statement,) = ast.parse(line).body
    return statement


def _is_nothing(statement: object) -> bool:
    remark = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return remark or isinstance(statement, ast.Pass)


def _parts(node: object) -> Iterator[object]:
    """What counts of a node: all fields but contexts, keywords by their names."""
    assert isinstance(node, ast.AST)
    for name in node._fields:
        value = getattr(node, name, None)
        if name == "keywords":
            value = sorted(value or (), key=lambda keyword: keyword.arg or "")
        if name not in ("ctx", "type_comment"):
            yield value
