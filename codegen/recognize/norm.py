"""Root-mean-square norms and how they scale, read from the arithmetic of their forward."""

from __future__ import annotations

import libcst as cst

from codegen.ir import NormFact, NormScale
from codegen.syntax import assignment, code, every_statement, find, one_line, parameters, self_attribute
from codegen.upstream import Method, UpstreamModule

WEIGHT = "self.weight"
FLOAT_WEIGHTS = ("self.weight", "self.weight.float()", "self.weight.to(torch.float32)")
ONE_PLUS = tuple(f"{one} + {w}" for one in ("1", "1.0") for w in FLOAT_WEIGHTS) + tuple(
    f"{w} + {one}" for one in ("1", "1.0") for w in FLOAT_WEIGHTS
)
EPSILONS = ("self.variance_epsilon", "self.eps")


def norm(module: UpstreamModule, cls: str) -> NormFact | None:
    """The fact, or None when the class is not a plain root-mean-square norm over its last dimension: gated, grouped
    and mean-subtracting norms, and arithmetic in another order, are left to upstream's own code."""
    methods = module.reachable_methods(cls)
    if not methods or parameters(methods[0].node) not in (("hidden_states",), ("x",)):
        return None
    lines = [line for m in methods for line in every_statement(m.node.body)]
    if any(not isinstance(line, cst.SimpleStatementLine) for line in lines) or not _is_root_mean_square(lines):
        return None
    scale = _scale(methods)
    return None if scale is None else NormFact(cls, scale, f"{methods[0].owner}.{methods[0].name}")


def _is_root_mean_square(lines: list[cst.BaseStatement]) -> bool:
    if not any("rsqrt" in code(line) for line in lines):
        return False
    text = [one_line(line) for line in lines]
    squares = [t for t in text if ".pow(2).mean(-1, keepdim=True)" in t]
    roots = [t for t in text if "torch.rsqrt(" in t]
    subtracts = any(isinstance(b.operator, cst.Subtract) for line in lines for b in find(line, cst.BinaryOperation))
    epsilon = any(e in t for t in text for e in EPSILONS)
    in_float = any(".to(torch.float32)" in t or ".float()" in t for t in text)
    return len(squares) == 1 and len(roots) == 1 and not subtracts and epsilon and in_float


def _scale(methods: tuple[Method, ...]) -> NormScale | None:
    """Follows the value through the lines of forward: was it cast back when the weight came in?"""
    cast = False  # the running value has been cast back to the input's dtype
    weighted: NormScale | None = None
    for line in every_statement(methods[0].node.body):
        bound = assignment(line)
        value = bound[1] if bound is not None else None
        if isinstance(line, cst.SimpleStatementLine) and isinstance(line.body[0], cst.Return):
            value = line.body[0].value
        if value is None or (methods[0].node.get_docstring() is not None and code(value).startswith(('"', 'r"'))):
            continue
        product = next((b for b in find(value, cst.BinaryOperation) if _weights(b) is not None), None)
        if product is None:
            if WEIGHT in code(value):
                return None
            cast = cast or _casts_back(value)
            continue
        if weighted is not None:
            return None
        weight, other = _weights(product) or ("", value)
        if cast or _casts_back(other):
            weighted = NormScale.CAST_THEN_WEIGHT if weight == WEIGHT else None
        elif weight in ONE_PLUS:
            weighted = NormScale.ONE_PLUS_WEIGHT
        else:
            weighted = NormScale.WEIGHT_THEN_CAST
        if weighted is None:
            return None
        cast = cast or _casts_back(value)
    if not cast:
        return None
    return weighted or NormScale.NO_WEIGHT


def _weights(product: cst.BinaryOperation) -> tuple[str, cst.BaseExpression] | None:
    """``(weight, other)`` when one side of a product is the weight."""
    if not isinstance(product.operator, cst.Multiply):
        return None
    for side, other in ((product.left, product.right), (product.right, product.left)):
        text = code(side.with_changes(lpar=[], rpar=[]))
        if text in FLOAT_WEIGHTS or text in ONE_PLUS:
            return text, other
    return None


def _casts_back(value: cst.BaseExpression) -> bool:
    """``.to(input_dtype)`` or ``.type_as(x)``, somewhere in the value; ``.to(torch.float32)`` is the way up."""
    for call in find(value, cst.Call):
        if isinstance(call.func, cst.Attribute) and call.func.attr.value in ("to", "type_as") and call.args:
            if code(call.args[0].value) != "torch.float32" and self_attribute(call.args[0].value) is None:
                return True
    return False
