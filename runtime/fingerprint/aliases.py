"""Copy propagation: locals that only repeat a name or an attribute."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from runtime.fingerprint.scopes import (
    COMPREHENSIONS,
    FUNCTIONS,
    Scope,
    bound_by_string,
    comprehension_names,
    nested_blocks,
)

_FIXED_ATTRIBUTES = frozenset({"dtype", "device"})
"""Tensor attributes that no method of a tensor changes in place."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """`root.a.b` with the scope that binds the root (None: a global)."""

    scope: Scope | None
    root: str
    attributes: tuple[str, ...]


def propagate(block: list[ast.stmt], scope: Scope) -> None:
    """Finds the locals that only repeat `name` or `name.attribute` and records what they stand for."""
    candidates = [
        (home, index, statement.targets[0].id, statement.value)
        for home in _blocks(block)
        for index, statement in enumerate(home)
        if isinstance(statement, ast.Assign)
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, (ast.Name, ast.Attribute))
    ]
    # Who else has hold of an object: an alias counts whether it is propagated in the end or not.
    repeats = {name: value for _, _, name, value in candidates if scope.bound.get(name) == 1}
    for home, index, name, value in candidates:
        if (
            scope.bound.get(name) != 1
            or name in scope.fixed
            or name in scope.captured
            or name in scope.outer
            or name in scope.enclosing
        ):
            continue
        chain = _chain(value, scope, {})
        if chain is None or _is_rebound_inside(chain):
            continue
        uses = [_loads(statement, name, scope) for statement in home[index + 1 :]]
        if not any(uses) or sum(uses) != sum(_loads(statement, name, scope) for statement in block):
            continue
        last = max(position for position, count in enumerate(uses) if count)
        region = home[index + 1 : index + 2 + last]
        if any(_blocks_alias(chain, statement, scope, repeats) for statement in region):
            continue
        scope.aliases[name] = value
        scope.dropped.add(id(home[index]))


def _chain(node: ast.expr, scope: Scope, repeats: Mapping[str, ast.expr]) -> _Chain | None:
    """The chain that an expression is, read through the aliases found so far and through `repeats`."""
    attributes: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            attributes.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Name):
            name = node.id
            owner = scope.lookup(name)
            if owner is not None and name in owner.aliases:
                node, scope = owner.aliases[name], owner
            elif owner is scope and name in repeats:
                node, repeats = repeats[name], {other: repeats[other] for other in repeats if other != name}
            else:
                return _Chain(owner, name, tuple(reversed(attributes)))
        else:
            return None


def _is_rebound_inside(chain: _Chain) -> bool:
    """Whether a nested function may bind the root again, whenever it is called."""
    return chain.scope is not None and chain.root in chain.scope.captured and chain.scope.bound[chain.root] > 1


def _blocks_alias(chain: _Chain, statement: ast.stmt, scope: Scope, repeats: Mapping[str, ast.expr]) -> bool:
    """Whether something in a statement may change what the chain reads.

    That is: a binding of the root, a store to an attribute of one of its names on any object, or a call that gets
    hold of an object on the way to the value (as receiver or argument). Such a call is harmless if the root is a
    global (a module), if the last attribute cannot change in place (`dtype`), or if the root is `self` and the
    result of the call is used: a module's submodules and methods compute, and setters are called as statements.
    """
    for part in _parts_in_scope(statement, chain.root):
        if isinstance(part, ast.Attribute):
            if type(part.ctx) is not ast.Load and part.attr in chain.attributes:
                return True
        elif isinstance(part, ast.Name):
            if type(part.ctx) is not ast.Load and part.id == chain.root and scope.lookup(part.id) is chain.scope:
                return True
        elif isinstance(part, (*FUNCTIONS, ast.ClassDef)):
            if part.name == chain.root:
                return True
        elif chain.root in bound_by_string(part):
            return True
        elif isinstance(part, ast.Expr) and isinstance(part.value, ast.Call):
            if chain.attributes and _reaches(part.value, chain, scope, repeats):
                return True
        elif isinstance(part, ast.Call) and chain.attributes and chain.scope is not None:
            harmless = chain.root == "self" or chain.attributes[-1] in _FIXED_ATTRIBUTES
            if not harmless and _reaches(part, chain, scope, repeats):
                return True
    return False


def _reaches(call: ast.Call, chain: _Chain, scope: Scope, repeats: Mapping[str, ast.expr]) -> bool:
    """Whether a call is given an object that the chain reads an attribute of."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    if isinstance(call.func, ast.Attribute):
        given.append(call.func.value)
    for value in given:
        other = _chain(value, scope, repeats)
        if (
            other is not None
            and other.scope is chain.scope
            and other.root == chain.root
            and other.attributes == chain.attributes[: len(other.attributes)]
            and len(other.attributes) < len(chain.attributes)
        ):
            return True
    return False


def _blocks(block: list[ast.stmt]) -> Iterator[list[ast.stmt]]:
    """A block and all blocks inside it that belong to the same function."""
    todo = [block]
    while todo:
        current = todo.pop()
        yield current
        for statement in current:
            if not isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
                todo.extend(nested_blocks(statement))


def _parts_in_scope(statement: ast.stmt, name: str) -> Iterator[ast.AST]:
    """All nodes below a statement that can act on the local `name`: not those in nested functions (which act later,
    and a name that they bind for their outer function counts as bound twice), nor in comprehensions that bind `name`.
    """
    stack: list[ast.AST] = [statement]
    while stack:
        node = stack.pop()
        yield node
        if isinstance(node, COMPREHENSIONS) and name in comprehension_names(node):
            stack.append(node.generators[0].iter)
        elif not isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Lambda)):
            stack.extend(ast.iter_child_nodes(node))


def _loads(statement: ast.stmt, name: str, scope: Scope) -> int:
    """How often a statement reads a local, comprehensions included that do not bind the name themselves."""
    count = 0
    stack: list[ast.AST] = [statement]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Name):
            count += node.id == name and type(node.ctx) is ast.Load
        elif isinstance(node, COMPREHENSIONS) and name in comprehension_names(node):
            stack.append(node.generators[0].iter)
        elif isinstance(node, (*FUNCTIONS, ast.Lambda)):
            # The body does not read it, or the name would count as captured.
            stack.extend(node.args.defaults)
            stack.extend(default for default in node.args.kw_defaults if default is not None)
            stack.extend(getattr(node, "decorator_list", ()))
        else:
            stack.extend(ast.iter_child_nodes(node))
    return count
