"""Canonical blocks: the rewrites of statements that cannot change what a function does."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence

from runtime.fingerprint.scopes import Kind, Scope

_JUMPS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


def canonical_block(statements: Sequence[ast.stmt], scope: Scope, guarded: bool = False) -> list[ast.stmt]:
    """The canonical form of a block: no empty statements, no code after a jump, `else` for what follows a jump.

    Walks down the `else` side in a loop, so that a hundred early returns in a row do not nest a hundred calls.
    `guarded` says that a `finally` sees the locals after a `return`.
    """
    result: list[ast.stmt] = []
    out = result
    pending = list(statements)
    index = 0
    while index < len(pending):
        statement = pending[index]
        index += 1
        if _is_empty(statement, scope):
            continue
        if isinstance(statement, ast.AnnAssign) and statement.value is not None and scope.kind != Kind.CLASS:
            statement = ast.Assign(targets=[statement.target], value=statement.value)
        if not guarded and isinstance(statement, ast.Assign):
            returned = _returned_value(statement, pending[index : index + 4], scope)
            if returned is not None:
                statement = ast.Return(value=returned)
        statement = _expand_conditional(statement)
        if isinstance(statement, ast.If):
            test, body, orelse = _positive(statement.test, statement.body, statement.orelse)
            leaves_body, leaves_orelse = _jumps(body), _jumps(orelse)
            rest = pending[index:]
            if leaves_body and leaves_orelse:
                rest = []
                pending, index = [], 0
            branch = ast.If(test=test, body=[], orelse=[])
            out.append(branch)
            if leaves_orelse and not leaves_body:
                branch.orelse = canonical_block(orelse, scope, guarded)
                out, pending, index = branch.body, [*body, *rest], 0
            elif leaves_body and not leaves_orelse:
                branch.body = canonical_block(body, scope, guarded)
                out, pending, index = branch.orelse, [*orelse, *rest], 0
            else:
                branch.body = canonical_block(body, scope, guarded)
                branch.orelse = canonical_block(orelse, scope, guarded)
            continue
        out.append(_compound(statement, scope, guarded))
        if isinstance(statement, _JUMPS):
            break
    return result


def _compound(statement: ast.stmt, scope: Scope, guarded: bool) -> ast.stmt:
    """A copy of a statement with canonical blocks inside."""
    if isinstance(statement, ast.Return):
        if isinstance(statement.value, ast.Constant) and statement.value.value is None:
            return ast.Return(value=None)
        return statement
    if isinstance(statement, (ast.For, ast.AsyncFor)):
        body = without_last(canonical_block(statement.body, scope, guarded), _is_continue)
        orelse = canonical_block(statement.orelse, scope, guarded)
        return type(statement)(target=statement.target, iter=statement.iter, body=body, orelse=orelse)
    if isinstance(statement, ast.While):
        body = without_last(canonical_block(statement.body, scope, guarded), _is_continue)
        return ast.While(test=statement.test, body=body, orelse=canonical_block(statement.orelse, scope, guarded))
    if isinstance(statement, (ast.With, ast.AsyncWith)):
        return type(statement)(items=statement.items, body=canonical_block(statement.body, scope, guarded))
    if isinstance(statement, (ast.Try, ast.TryStar)):
        inside = guarded or bool(statement.finalbody)
        return type(statement)(
            body=canonical_block(statement.body, scope, inside),
            handlers=[
                ast.ExceptHandler(
                    type=handler.type, name=handler.name, body=canonical_block(handler.body, scope, inside)
                )
                for handler in statement.handlers
            ],
            orelse=canonical_block(statement.orelse, scope, inside),
            finalbody=canonical_block(statement.finalbody, scope, guarded),
        )
    if isinstance(statement, ast.Match):
        cases = [
            ast.match_case(pattern=case.pattern, guard=case.guard, body=canonical_block(case.body, scope, guarded))
            for case in statement.cases
        ]
        return ast.Match(subject=statement.subject, cases=cases)
    return statement


def _is_empty(statement: ast.stmt, scope: Scope) -> bool:
    if isinstance(statement, ast.Expr):
        return isinstance(statement.value, ast.Constant)
    if isinstance(statement, ast.AnnAssign):
        return statement.value is None and scope.kind != Kind.CLASS
    return isinstance(statement, (ast.Pass, ast.Global, ast.Nonlocal))


def _returned_value(statement: ast.stmt, following: Sequence[ast.stmt], scope: Scope) -> ast.expr | None:
    """The value of `x = value` if `return x`, or `y = x` and `return y`, follows and nobody else can see them."""
    name = _private_target(statement, scope)
    for other in following:
        if name is None:
            return None
        value = other.value if isinstance(other, (ast.Return, ast.Assign)) else None
        if not (isinstance(value, ast.Name) and value.id == name):
            return None
        if isinstance(other, ast.Return):
            assert isinstance(statement, ast.Assign)
            return statement.value
        name = _private_target(other, scope)
    return None


def _private_target(statement: ast.stmt, scope: Scope) -> str | None:
    """The local that an assignment binds, if no nested function, no `locals()` and no other scope can read it."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    target = statement.targets[0]
    if not isinstance(target, ast.Name) or scope.kind != Kind.FUNCTION or scope.keeps_names:
        return None
    shared = target.id in scope.captured or target.id in scope.outer or target.id in scope.enclosing
    return None if shared else target.id


def _expand_conditional(statement: ast.stmt) -> ast.stmt:
    """`x = a if c else b` and `return a if c else b` as `if` statements."""
    if isinstance(statement, ast.Return) and isinstance(statement.value, ast.IfExp):
        choice = statement.value
        return ast.If(test=choice.test, body=[ast.Return(value=choice.body)], orelse=[ast.Return(value=choice.orelse)])
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.IfExp) and len(statement.targets) == 1:
        choice, targets = statement.value, statement.targets  # a target is evaluated after the value, so it may follow
        return ast.If(
            test=choice.test,
            body=[ast.Assign(targets=targets, value=choice.body)],
            orelse=[ast.Assign(targets=targets, value=choice.orelse)],
        )
    return statement


def _positive(
    test: ast.expr, body: Sequence[ast.stmt], orelse: Sequence[ast.stmt]
) -> tuple[ast.expr, Sequence[ast.stmt], Sequence[ast.stmt]]:
    test, negated = without_not(test)
    return (test, orelse, body) if negated else (test, body, orelse)


def without_not(test: ast.expr) -> tuple[ast.expr, bool]:
    """A truth test without its leading negations, and whether their number is odd."""
    negated = False
    while True:
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            test, negated = test.operand, not negated
            continue
        plain = without_negative_operator(test)
        if plain is None:
            return test, negated
        return plain, not negated


def without_negative_operator(node: ast.expr) -> ast.Compare | None:
    """`a is b` for `a is not b`, `a in b` for `a not in b`: the only pairs that Python defines by negation."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        operator = node.ops[0]
        if isinstance(operator, ast.IsNot):
            return ast.Compare(left=node.left, ops=[ast.Is()], comparators=node.comparators)
        if isinstance(operator, ast.NotIn):
            return ast.Compare(left=node.left, ops=[ast.In()], comparators=node.comparators)
    return None


def _jumps(block: Sequence[ast.stmt]) -> bool:
    """Whether control never runs off the end of a block."""
    for statement in block:
        if isinstance(statement, _JUMPS):
            return True
        if isinstance(statement, ast.If) and statement.orelse and _jumps(statement.body) and _jumps(statement.orelse):
            return True
    return False


def _is_continue(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Continue)


def is_bare_return(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Return) and statement.value is None


def without_last(block: list[ast.stmt], is_superfluous: Callable[[ast.stmt], bool]) -> list[ast.stmt]:
    """Removes a jump to where control goes anyway from the end of every branch, in place."""
    todo = [block]
    while todo:
        current = todo.pop()
        while current and is_superfluous(current[-1]):
            current.pop()
        if current and isinstance(current[-1], ast.If):
            todo.append(current[-1].body)
            todo.append(current[-1].orelse)
    return block
