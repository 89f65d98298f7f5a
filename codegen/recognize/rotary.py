"""Rotary classes: cos and sin rows for position_ids."""

from __future__ import annotations

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.ir import RotaryFact
from codegen.syntax import code, find, names, parameters
from codegen.upstream import UpstreamModule


def rotary(module: UpstreamModule, cls: str) -> RotaryFact | Diagnostic | None:
    """The fact for a class whose forward takes ``(x, position_ids[, layer_type])`` and returns ``(cos, sin)``; a
    diagnostic for one that rotates in another way; None for any other class."""
    method = module.method(cls, "forward")
    if method is None or "position_ids" not in parameters(method.node):
        return None
    if "inv_freq" not in code(method.node.body):
        return None
    where = f"{method.owner}.forward"
    labels = parameters(method.node)
    returned = [r.value for r in find(method.node.body, cst.Return)]
    pair = (
        len(returned) == 1
        and isinstance(returned[0], cst.Tuple)
        and len(returned[0].elements) == 2
        and [next(iter(sorted(names(e.value) & {"cos", "sin"})), "") for e in returned[0].elements] == ["cos", "sin"]
    )
    if (
        pair
        and labels in (("x", "position_ids"), ("x", "position_ids", "layer_type"))
        and "ndim" not in code(method.node)
    ):
        return RotaryFact(cls, where)
    return Diagnostic(
        module.span(where),
        "recognize/rotary",
        "forward(x, position_ids[, layer_type]) -> (cos, sin)",
        f"forward({', '.join(labels)}) -> {code(returned[0]) if returned and returned[0] is not None else 'nothing'}",
        "complex and multi-axis rotary embeddings need a rule of their own",
    )
