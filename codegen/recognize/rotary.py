"""Rotary classes: cos and sin rows for position_ids, as a pair or as one complex row."""

from __future__ import annotations

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.ir import RotaryFact, RotaryStyle
from codegen.syntax import assignment, code, dotted, every_statement, find, names, parameters
from codegen.upstream import UpstreamModule


def rotary(module: UpstreamModule, cls: str) -> RotaryFact | Diagnostic | None:
    """The fact for a class whose forward takes ``(x, position_ids[, layer_type])`` and returns ``(cos, sin)``, or
    takes ``(x, position_ids)`` and returns ``cos + i sin``; a diagnostic for one that rotates in another way; None for
    any other class."""
    method = module.method(cls, "forward")
    if method is None or "position_ids" not in parameters(method.node):
        return None
    where = f"{method.owner}.forward"
    labels = parameters(method.node)
    returned = [r.value for r in find(method.node.body, cst.Return)]
    pair = (
        len(returned) == 1
        and isinstance(returned[0], cst.Tuple)
        and len(returned[0].elements) == 2
        and _yields(method.node, [e.value for e in returned[0].elements]) == [{"cos"}, {"sin"}]
    )
    polar = len(returned) == 1 and _is_polar(method.node, returned[0])
    if "inv_freq" not in code(method.node.body) and not pair and not polar:
        return None
    if (
        pair
        and labels in (("x", "position_ids"), ("x", "position_ids", "layer_type"))
        and "ndim" not in code(method.node)
    ):
        return RotaryFact(cls, where)
    if labels == ("x", "position_ids") and polar:
        return RotaryFact(cls, where, RotaryStyle.COMPLEX)
    return Diagnostic(
        module.span(where),
        "recognize/rotary",
        "forward(x, position_ids[, layer_type]) -> (cos, sin), or one torch.polar of the angles",
        f"forward({', '.join(labels)}) -> {code(returned[0]) if returned and returned[0] is not None else 'nothing'}",
        "multi-axis rotary embeddings need a rule of their own",
    )


def _yields(function: cst.FunctionDef, values: list[cst.BaseExpression]) -> list[set[str]]:
    """Which of cos and sin went into each value, by way of locals; what is bound in another way is what its name
    says."""
    held: dict[str, set[str]] = {name: {name} for name in ("cos", "sin")}

    def of(value: cst.BaseExpression) -> set[str]:
        called = [c.func.attr.value for c in find(value, cst.Call) if isinstance(c.func, cst.Attribute)]
        return set(called) & {"cos", "sin"} | {one for name in names(value) for one in held.get(name, ())}

    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name) and (found := of(bound[1])):
            held[bound[0].value] = found
    return [of(value) for value in values]


def _is_polar(function: cst.FunctionDef, returned: cst.BaseExpression | None) -> bool:
    """Whether what is returned is a name for ``torch.polar(...)``, scaled or not."""
    if not isinstance(returned, cst.Name):
        return False
    values = [
        b[1]
        for s in every_statement(function.body)
        if (b := assignment(s)) is not None and code(b[0]) == returned.value
    ]
    if not values or not isinstance(values[0], cst.Call) or dotted(values[0].func) != "torch.polar":
        return False
    return all(
        isinstance(v, cst.BinaryOperation) and isinstance(v.operator, cst.Multiply) and returned.value in names(v)
        for v in values[1:]
    )
