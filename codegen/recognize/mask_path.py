"""Whether the mask comes from the backbone to every attention, and is used there: a variant puts more into a row than
upstream does (free slots, other sequences), and nothing but the mask keeps them apart."""

from __future__ import annotations

from collections.abc import Callable

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.recognize.calls import bound_to, callees
from codegen.recognize.carriers import bound_by_loops
from codegen.syntax import find, names, one_line, parameters, reads, truth
from codegen.upstream import UpstreamModule

ID = "recognize/mask-path"
MASK = "attention_mask"
ENCODED = "encoder_hidden_states"
HELP = "upstream's own padding would be seen too; if that is meant, the family needs no mask and a rule that says so"


def masks_withheld(module: UpstreamModule, carriers: tuple[str, ...]) -> list[Diagnostic]:
    """One diagnostic per method of a carrier that calls another with ``attention_mask=None``, or that uses its mask
    only where there is none."""
    found = []
    for cls in carriers:
        for method in module.reachable_methods(cls):
            where = f"{method.owner}.{method.name}"
            for call in find(method.node.body, cst.Call):
                if _withholds(module, cls, carriers, call, method.node):
                    expected = "the mask handed on to every class that writes the cache, or leads to one"
                    found.append(Diagnostic(module.span(where, call), ID, expected, f"`{one_line(call)}`", HELP))
            found += _unused(module, where, method.node)
            if MASK in parameters(method.node) and not _used(method.node):
                expected = "a mask that is used or handed on"
                found.append(Diagnostic(module.span(where), ID, expected, f"`{MASK}` is tested at most", HELP))
    eager = {n for cls in carriers for m in module.reachable_methods(cls) for n in names(m.node.body)}
    for name in sorted(eager & module.functions.keys()):
        function = module.functions[name]
        found += _unused(module, name, function)
        if name.startswith("eager") and MASK in parameters(function) and not _used(function):
            expected = "an attention function that uses its mask"
            found.append(Diagnostic(module.span(name), ID, expected, f"`{MASK}` is tested at most", HELP))
    return list(dict.fromkeys(found))


def _withholds(
    module: UpstreamModule, cls: str, carriers: tuple[str, ...], call: cst.Call, function: cst.FunctionDef
) -> bool:
    given = [a for a in call.args if isinstance(a.value, cst.Name) and a.value.value == "None"]
    if not given:
        return False
    for callee in callees(module, cls, call, bound_by_loops(function)):
        forward = module.method(callee, "forward") if callee in carriers else None
        bound = bound_to(call, forward.node) if forward is not None else {}
        if MASK in bound and bound[MASK] in given and not _cross_attends(call, function):
            return True
    return False


def _cross_attends(call: cst.Call, function: cst.FunctionDef) -> bool:
    """Whether a call is made only where an encoder's states are given: a causal LM alone has none."""
    return any(
        truth(branch.test, _is_given(ENCODED, False)) is False
        and any(one is call for one in find(branch.body, cst.Call))
        for branch in find(function.body, cst.If)
    )


def _unused(module: UpstreamModule, where: str, function: cst.FunctionDef) -> list[Diagnostic]:
    """``if attention_mask is None: scores = scores + attention_mask``, in any words."""
    result = []
    branches: list[cst.If | cst.IfExp] = [*find(function.body, cst.If), *find(function.body, cst.IfExp)]
    for part in (part for branch in branches for part in _absent(branch)):
        for operation in find(part, cst.BinaryOperation):
            if any(isinstance(side, cst.Name) and side.value == MASK for side in (operation.left, operation.right)):
                expected = "a mask that is added where there is one"
                found = f"`{one_line(operation)}` where there is none"
                result.append(Diagnostic(module.span(where, operation), ID, expected, found, HELP))
    return result


def _absent(branch: cst.If | cst.IfExp) -> list[cst.CSTNode]:
    """The part of a branch that runs only where there is no mask, if one does."""
    holds = truth(branch.test, _is_given(MASK, True))
    part = None if holds is None else branch.orelse if holds else branch.body
    return [] if part is None else [part]


def _is_given(name: str, given: bool) -> Callable[[cst.BaseExpression], bool | None]:
    """What is known of a test's parts where a parameter is given, or None."""
    known = {name: given, f"{name} is not None": given, f"{name} is None": not given}
    return lambda part: known.get(one_line(part))


def _used(function: cst.FunctionDef) -> bool:
    """Whether the mask is read by more than tests for None."""
    tested = {id(n) for c in find(function.body, cst.Comparison) for n in find(c, cst.Name)}
    return any(id(name) not in tested for name in reads(function.body, {MASK}))
