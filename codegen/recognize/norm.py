"""Root-mean-square norms and how they scale, read from the arithmetic of their forward."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import product

from codegen.ir import NormFact, NormScale
from codegen.upstream import UpstreamModule

INPUT = "x"
IN_FLOAT = ("x.to(torch.float32)", "x.float()")
CAST_BACK = ("({}).to(x.dtype)", "({}).type_as(x)")
WEIGHT = ("self.weight",)
FLOAT_WEIGHTS = ("self.weight", "self.weight.float()", "self.weight.to(torch.float32)")
ONE_PLUS = tuple(each for one in ("1", "1.0") for w in FLOAT_WEIGHTS for each in (f"{one} + {w}", f"{w} + {one}"))
EPSILONS = ("self.variance_epsilon", "self.eps")


def norm(module: UpstreamModule, cls: str) -> NormFact | None:
    """The fact, or None when the class is not a plain root-mean-square norm over its last dimension: gated, grouped
    and mean-subtracting norms, and arithmetic in another order or precision, are left to upstream's own code."""
    methods = {m.name: m for m in module.reachable_methods(cls)}
    if "forward" not in methods or not any(module.classes.mentions(m.owner, "rsqrt") for m in methods.values()):
        return None
    functions = {name: module.definition(f"{m.owner}.{name}") for name, m in methods.items()}
    known = {name: node for name, node in functions.items() if isinstance(node, ast.FunctionDef)}
    result = _result(known, "forward", INPUT)
    scale = None if result is None else _forms().get(ast.unparse(result))
    return None if scale is None else NormFact(cls, scale, f"{methods['forward'].owner}.forward")


@cache
def _forms() -> Mapping[str, NormScale]:
    """What a norm may return as one expression, and how it scales then."""
    found: dict[str, NormScale] = {}
    for value, epsilon in product(IN_FLOAT, EPSILONS):
        square = f"{value}.pow(2).mean(-1, keepdim=True)"
        for total in _either(square, "+", epsilon):
            for whole in _either(value, "*", f"torch.rsqrt({total})"):
                for back in CAST_BACK:
                    _add(found, [back.format(whole)], NormScale.NO_WEIGHT)
                    for weight in WEIGHT:
                        _add(found, _either(back.format(whole), "*", weight), NormScale.CAST_THEN_WEIGHT)
                    for weight in FLOAT_WEIGHTS:
                        weighted = [back.format(one) for one in _either(whole, "*", weight)]
                        _add(found, weighted, NormScale.WEIGHT_THEN_CAST)
                    for weight in ONE_PLUS:
                        weighted = [back.format(one) for one in _either(whole, "*", weight)]
                        _add(found, weighted, NormScale.ONE_PLUS_WEIGHT)
    return found


def _either(left: str, operator: str, right: str) -> Iterator[str]:
    yield f"({left}) {operator} ({right})"
    yield f"({right}) {operator} ({left})"


def _add(found: dict[str, NormScale], texts: Iterable[str], scale: NormScale) -> None:
    found.update({ast.unparse(ast.parse(text, mode="eval")): scale for text in texts})


def _result(functions: Mapping[str, ast.FunctionDef], name: str, given: str | ast.expr) -> ast.expr | None:
    """What a method of one parameter returns for what is given, as one expression in which its locals and calls of
    other such methods are written out; None where it has other statements than assignments."""
    function = functions[name]
    if len(function.args.args) != 2 or function.args.vararg is not None:
        return None
    value: ast.expr = ast.Name(given, ast.Load()) if isinstance(given, str) else given
    inline = _Inline(functions, {function.args.args[1].arg: value})
    for statement in function.body:
        if isinstance(statement, ast.Return):
            return None if statement.value is None else inline.visited(statement.value)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            new = inline.visited(statement.value)
            if new is None or not isinstance(target, ast.Name):
                return None
            inline.values[target.id] = new
        elif not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            return None
    return None


class _Inline(ast.NodeTransformer):
    """Writes out locals, and calls of the class's own methods."""

    def __init__(self, functions: Mapping[str, ast.FunctionDef], values: dict[str, ast.expr]) -> None:
        self.values = values
        self._functions = functions
        self._failed = False

    def visited(self, node: ast.expr) -> ast.expr | None:
        result = self.visit(ast.parse(ast.unparse(node), mode="eval").body)  # a copy: the file's tree stays
        assert isinstance(result, ast.expr)
        return None if self._failed else result

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.values.get(node.id, node)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        method = node.func.attr if isinstance(node.func, ast.Attribute) and _is_self(node.func.value) else ""
        if method not in self._functions or len(node.args) != 1 or node.keywords or method == "forward":
            return node
        result = _result(self._functions, method, node.args[0])
        self._failed = self._failed or result is None
        return node if result is None else result


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"
