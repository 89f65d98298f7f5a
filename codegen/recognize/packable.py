"""What keeps a model from running on a packed row: tokens that meet elsewhere than in a masked attention, positions
that are not those of the input, and padding masks that are read in ways no packing can answer."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.ir import FamilyIR, Role
from codegen.recognize.carriers import bound_by_loops, called_attribute
from codegen.recognize.earlier_masks import masks_of_calls
from codegen.syntax import (
    assignment,
    code,
    every_statement,
    find,
    names,
    parameters,
    reads,
    self_attribute,
    statements,
    walk,
)
from codegen.upstream import Method, UpstreamModule

MASK, IDS, POSITIONS = "attention_mask", "input_ids", "position_ids"
BUILDER_PREFIX = "create_"
RANKING = ("topk", "sort", "argsort")
ID = "recognize/packable"


def unpackable(module: UpstreamModule, family: FamilyIR) -> list[Diagnostic]:
    """One diagnostic per method that stands in the way; none for a family that packs."""
    found: dict[str, Diagnostic] = {}
    for name in family.reachable:
        carrier = family.carrier(name)
        role = carrier.role if carrier is not None else Role.PART
        for method in module.reachable_methods(name):
            where = f"{method.owner}.{method.name}"
            problem = _problem(module, family, name, role, method)
            if problem is not None:
                node, expected, help = problem
                found.setdefault(where, Diagnostic(module.span(where, node), ID, expected, f"`{code(node)}`", help))
    return list(found.values())


def _problem(
    module: UpstreamModule, family: FamilyIR, cls: str, role: Role, method: Method
) -> tuple[cst.CSTNode, str, str] | None:
    if role is Role.ATTENTION:
        for call in find(method.node.body, cst.Call):
            if isinstance(call.func, cst.Attribute) and call.func.attr.value in RANKING:
                return (
                    call,
                    "an attention that only its mask keeps from seeing a token",
                    "it ranks the tokens of a row among each other: those of other sequences would count",
                )
    if role is Role.PART:
        counted = _positions_counted_from_ids(method.node)
        if counted is not None:
            return (
                counted,
                "default positions counted from a row's start",
                "they are counted from the ids that are not padding, over the whole row",
            )
    if role in (Role.BACKBONE, Role.WRAPPER) and IDS in parameters(method.node):
        for read in _unknown_reads(module, family, cls, method.node):
            return (
                read,
                "the padding mask handed to a mask factory or to a carrier, or tested for None",
                "what is computed from it has to be taught to read a packing",
            )
    return None


def _positions_counted_from_ids(function: cst.FunctionDef) -> cst.CSTNode | None:
    """``position_ids = self.<function>(input_ids, ...)`` where none were given."""
    if IDS not in parameters(function):
        return None
    for assign in find(function.body, cst.Assign):
        targets = [code(t.target) for t in assign.targets]
        for call in find(assign.value, cst.Call) if targets == [POSITIONS] else ():
            arguments = [code(a.value) for a in call.args]
            if IDS in arguments and any("padding_idx" in a or "pad_token" in a for a in arguments):
                return call
    return None


def _unknown_reads(
    module: UpstreamModule, family: FamilyIR, cls: str, function: cst.FunctionDef
) -> Iterator[cst.CSTNode]:
    """Statements' parts that read the padding mask as a tensor, where a packing may stand in its place."""
    known: set[int] = {id(m.mask) for m in masks_of_calls(module, cls, function)}
    factories = _factories(function)
    rebound = {id(read) for read in _after_rebinding(function)}
    loops = bound_by_loops(function)
    for node in walk(function.body):
        if isinstance(node, cst.Call):
            if _takes_packings(module, family, cls, node, loops, factories):
                known |= {id(a.value) for a in node.args if isinstance(a.value, cst.Name)}
        elif isinstance(node, cst.Comparison) and code(node.comparisons[0].comparator) == "None":
            known.add(id(node.left))
        elif isinstance(node, cst.Dict):
            known |= {id(e.value) for e in node.elements}
        elif isinstance(node, cst.NamedExpr):
            known.add(id(node.value))
        elif isinstance(node, cst.AssignTarget):
            known |= {id(n) for n in walk(node.target)}
        elif isinstance(node, cst.If) and shapes_mask(node):
            known |= {id(n) for n in walk(node)}
        elif isinstance(node, cst.If) and _never_runs_packed(node.test):
            known |= {id(n) for n in walk(node.body)}
    for read in reads(function.body, {MASK}):
        if id(read) in rebound:
            return
        if id(read) not in known:
            line = next(
                (n for n in find(function.body, cst.SimpleStatementLine) if any(m is read for m in walk(n))), read
            )
            yield line


def shapes_mask(branch: cst.If) -> bool:
    """``if attention_mask is not None and <its dimensions>: attention_mask = attention_mask.view(...)`` and no more."""
    lines = statements(branch)
    bound = assignment(lines[0]) if len(lines) == 1 and branch.orelse is None else None
    return (
        isinstance(branch.test, cst.BooleanOperation)
        and isinstance(branch.test.operator, cst.And)
        and code(branch.test.left) == f"{MASK} is not None"
        and code(branch.test.right).startswith((f"{MASK}.ndim", f"{MASK}.dim()"))
        and bound is not None
        and code(bound[0]) == MASK
        and code(bound[1]).startswith(f"{MASK}.view(")
    )


def _factories(function: cst.FunctionDef) -> frozenset[str]:
    """Mask factories, and local names for one of them: ``f = create_a if no_window else create_b``."""
    used = {name for name in names(function.body) if name.startswith(BUILDER_PREFIX)}
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name) and isinstance(bound[1], cst.IfExp | cst.Name):
            choices = (bound[1].body, bound[1].orelse) if isinstance(bound[1], cst.IfExp) else (bound[1],)
            if all(isinstance(c, cst.Name) and c.value in used for c in choices):
                used.add(bound[0].value)
    return frozenset(used)


def _after_rebinding(function: cst.FunctionDef) -> list[cst.Name]:
    """The reads of the mask's name after a statement of the method's own level has bound it to what a factory made."""
    body = statements(function)
    for position, line in enumerate(body):
        made = any(
            isinstance(assign.value, cst.Call)
            and any(isinstance(n, cst.Name) and n.value == MASK for t in assign.targets for n in walk(t.target))
            and not (isinstance(assign.value.func, cst.Attribute) and code(assign.value.func.value) == MASK)
            for assign in find(line, cst.Assign)
        )
        conditional = isinstance(line, cst.If) and (_never_runs_packed(line.test) or shapes_mask(line))
        if made and not conditional:
            return [read for later in body[position + 1 :] for read in reads(later, {MASK})]
    return []


def _never_runs_packed(test: cst.BaseExpression) -> bool:
    """Branches for input without a mask or positions: packed input has both."""
    first = test.left if isinstance(test, cst.BooleanOperation) else test
    return code(first) in (f"{MASK} is None", f"{POSITIONS} is None", f"not isinstance({MASK}, torch.Tensor)")


def _takes_packings(
    module: UpstreamModule,
    family: FamilyIR,
    cls: str,
    call: cst.Call,
    loops: dict[str, str],
    factories: frozenset[str],
) -> bool:
    """Whether a call may be given the packing: a mask factory, a carrier, ``isinstance``, or a part that reads the mask
    only where it was given no positions."""
    if isinstance(call.func, cst.Name):
        return call.func.value in factories or call.func.value in ("isinstance", "dict")
    attribute = called_attribute(call, loops)
    if attribute is None:
        return False
    own = module.method(cls, attribute)
    if own is not None:
        return not list(_unknown_reads(module, family, cls, own.node))
    held = module.submodules(cls).get(attribute, ())
    for part in held:
        if family.carrier(part) is not None:
            continue
        forward = module.method(part, "forward")
        if forward is not None and MASK in parameters(forward.node) and _reads_mask(module, family, part, forward):
            return False
    return bool(held) or self_attribute(call.func) is not None


def _reads_mask(module: UpstreamModule, family: FamilyIR, part: str, forward: Method) -> bool:
    return bool(list(_unknown_reads(module, family, part, forward.node)))
