"""Attention functions that are given a bias of the attention's own making where others are given the mask."""

from __future__ import annotations

import libcst as cst

from codegen.syntax import arguments, assignment, code, every_statement, find, names, parameters
from codegen.upstream import UpstreamModule

MASK = "attention_mask"


def takes_own_bias(module: UpstreamModule, function: str) -> bool:
    """Whether every call of a module-level function passes as its mask what a method of the caller returned: numbers to
    add, in which hidden scores are already low."""
    given = [value for cls in module.classes for value in _masks_given(module, cls, function)]
    return bool(given) and all(given)


def _masks_given(module: UpstreamModule, cls: str, function: str) -> list[bool]:
    """For every call of the function in the class, by name or through a lookup: is its mask the class's own bias?"""
    result = []
    for method in module.reachable_methods(cls):
        if function not in names(method.node.body):
            continue
        bound = [b for s in every_statement(method.node.body) if (b := assignment(s)) is not None]
        called = {function} | {code(t) for t, v in bound if isinstance(t, cst.Name) and function in names(v)}
        for call in find(method.node.body, cst.Call):
            if code(call.func) in called and MASK in _labels(module, call, function):
                mask = _labels(module, call, function)[MASK]
                made = [v for t, v in bound if code(t) == code(mask)]
                result.append(bool(made) and any(_by_method(module, cls, v) for v in made))
    return result


def _labels(module: UpstreamModule, call: cst.Call, function: str) -> dict[str, cst.BaseExpression]:
    positional = [a.value for a in call.args if a.keyword is None and not a.star]
    given = dict(zip(parameters(module.functions[function]), positional, strict=False))
    return {**given, **{label: arg.value for label, arg in arguments(call).items()}}


def _by_method(module: UpstreamModule, cls: str, value: cst.BaseExpression) -> bool:
    """``self.method(..., attention_mask=attention_mask)`` with a method of the class."""
    return (
        isinstance(value, cst.Call)
        and code(value.func).startswith("self.")
        and module.method(cls, code(value.func).removeprefix("self.")) is not None
        and any(code(a.value) == MASK for a in value.args)
    )
