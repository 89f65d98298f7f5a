"""``qeff/key-bias``: the columns of a bias over keys are aligned with each row's last position."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, every_statement, expression, names


class KeyBias:
    id = "qeff/key-bias"
    roles = frozenset({Role.ATTENTION})
    summary = "takes a key bias's columns by position_ids instead of the last ones for the keys' length"
    why = "the last slot of a fixed buffer is not the last token; each row's largest position is"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, scores, position_bias, seen, keys):
        key_length = keys.shape[-2]
        first_query = max(0, position_bias.size(1) - seen)
        first_key = max(0, position_bias.size(2) - key_length)
        position_bias = position_bias[:, first_query:, first_key:]
        return scores + position_bias
""",
            "CaseAttention.forward",
            """
    def forward(self, scores, position_bias, seen, keys):
        key_length = keys.shape[-2]
        position_bias = last_keys(position_bias, position_ids, key_length)
        return scores + position_bias
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, scores, bias, keys):
        first_key = max(0, bias.size(2) - keys.shape[-2])
        return scores + bias[:, :, first_key:]
""",
            "CaseAttention.forward",
            refuses="bias[:, :, first_key:]",
        ),
        Case(
            "class CaseAttention:\n    def forward(self, scores, bias):\n        return scores + bias[:, :2]\n",
            "CaseAttention.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        firsts = _firsts(function)
        edits: list[Edit] = []
        used: set[str] = set()
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is None or not isinstance(bound[1], cst.Subscript) or not names(bound[1]) & firsts.keys():
                continue
            bias, starts = code(bound[1].value), _starts(bound[1])
            if [firsts[s][:2] for s in starts if s in firsts] != [(bias, 1), (bias, 2)]:
                continue
            used |= set(starts)
            rows = expression("last_keys(BIAS, position_ids, LENGTH)", BIAS=bound[1].value, LENGTH=firsts[starts[1]][2])
            edits.append(Edit(bound[1], rows))
        known = {id(e.node) for e in edits}
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is not None and code(bound[0]) in firsts:
                if code(bound[0]) in used:
                    edits.append(Edit(line, cst.RemoveFromParent()))
            elif isinstance(line, cst.SimpleStatementLine) and names(line) & firsts.keys():
                if bound is None or id(bound[1]) not in known:
                    return site.refusal(
                        self.id,
                        line,
                        "bias = bias[:, first_query:, first_key:] with first = max(0, bias.size(i) - length)",
                        f"`{code(line)}`",
                        "teach rules/qeff/key_bias.py which columns these are",
                    )
        return Edits(edits, {"last_keys": "runtime.qeff.alibi"}) if edits else NotApplicable()


def _firsts(function: cst.FunctionDef) -> dict[str, tuple[str, int, cst.BaseExpression]]:
    """Names of ``max(0, bias.size(i) - length)``: name -> (bias, i, length)."""
    result = {}
    for line in every_statement(function.body):
        bound = assignment(line)
        call = bound[1] if bound is not None else None
        if not (isinstance(call, cst.Call) and code(call.func) == "max" and len(call.args) == 2):
            continue
        value = call.args[1].value
        if code(call.args[0].value) != "0" or not isinstance(value, cst.BinaryOperation):
            continue
        size = value.left
        if not (isinstance(value.operator, cst.Subtract) and isinstance(size, cst.Call) and len(size.args) == 1):
            continue
        dimension = code(size.args[0].value)
        if isinstance(size.func, cst.Attribute) and size.func.attr.value == "size" and dimension in ("1", "2"):
            assert bound is not None
            result[code(bound[0])] = (code(size.func.value), int(dimension), value.right)
    return result


def _starts(subscript: cst.Subscript) -> list[str]:
    """``a`` and ``b`` of ``x[:, a:, b:]``."""
    parts = [e.slice for e in subscript.slice]
    if len(parts) != 3 or code(parts[0]) != ":":
        return []
    slices = [p for p in parts[1:] if isinstance(p, cst.Slice) and p.lower is not None and p.upper is None]
    return [code(p.lower) for p in slices if p.lower is not None] if len(slices) == 2 else []
