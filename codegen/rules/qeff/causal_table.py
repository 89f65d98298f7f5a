"""``qeff/causal-table``: rows of a table of visible keys are those of the queries' positions."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, every_statement, expression, find, self_attribute


class CausalTable:
    id = "qeff/causal-table"
    roles = frozenset({Role.ATTENTION})
    summary = "takes the rows of a causal table by position_ids instead of the last ones before the keys' length"
    why = "in a fixed buffer the keys' length says nothing of where the queries are"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, query, key):
        query_length, key_length = query.size(-2), key.size(-2)
        visible = self.bias[:, :, key_length - query_length : key_length, :key_length]
        return visible
""",
            "CaseAttention.forward",
            """
    def forward(self, query, key):
        query_length, key_length = query.size(-2), key.size(-2)
        visible = table_rows(self.bias, position_ids, key_length)
        return visible
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, query, key):
        return self.bias[:, key.size(-2) - query.size(-2) :]
""",
            "CaseAttention.forward",
            refuses="self.bias[:, key.size(-2) - query.size(-2) :]",
        ),
        Case(
            "class CaseAttention:\n    def forward(self, q):\n        return self.bias[:, : q.size(1)]\n",
            "CaseAttention.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        edits = []
        for subscript, length in table_rows(site.function):
            rows = expression("table_rows(TABLE, position_ids, LENGTH)", TABLE=subscript.value, LENGTH=length)
            edits.append(Edit(subscript, rows))
        known = {id(e.node) for e in edits}
        for subscript in find(site.function.body, cst.Subscript):
            if id(subscript) not in known and self_attribute(subscript.value) is not None and _counts_back(subscript):
                return site.refusal(
                    self.id,
                    subscript,
                    "self.table[:, :, key_length - query_length : key_length, :key_length]",
                    f"`{code(subscript)}`",
                    "teach rules/qeff/causal_table.py which rows these are",
                )
        return Edits(edits, {"table_rows": "runtime.qeff.causal_table"}) if edits else NotApplicable()


def table_rows(function: cst.FunctionDef) -> list[tuple[cst.Subscript, cst.BaseExpression]]:
    """``self.table[:, :, keys - queries : keys, :keys]`` and the ``keys`` of each."""
    result = []
    for subscript in find(function.body, cst.Subscript):
        parts = [e.slice for e in subscript.slice]
        if len(parts) != 4 or self_attribute(subscript.value) is None:
            continue
        rows, keys = parts[2], parts[3]
        if not (isinstance(rows, cst.Slice) and isinstance(keys, cst.Slice) and rows.upper is not None):
            continue
        whole = all(code(p) == ":" for p in parts[:2]) and keys.lower is None and keys.upper is not None
        if whole and keys.upper is not None and _lengths(function, rows, keys.upper):
            result.append((subscript, keys.upper))
    return result


def _lengths(function: cst.FunctionDef, rows: cst.Slice, keys: cst.BaseExpression) -> bool:
    """Whether the rows run from ``keys - queries`` to ``keys``, both sizes of a tensor."""
    lower, upper = rows.lower, rows.upper
    if not (isinstance(lower, cst.BinaryOperation) and isinstance(lower.operator, cst.Subtract)):
        return False
    same = upper is not None and code(upper) == code(keys) == code(lower.left)
    return same and all(code(n) in _sizes(function) for n in (lower.left, lower.right))


def _sizes(function: cst.FunctionDef) -> set[str]:
    """Names of second-to-last sizes: ``q, k = query.size(-2), key.size(-2)``."""
    result = set()
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is None:
            continue
        targets = bound[0].elements if isinstance(bound[0], cst.Tuple) else [bound[0]]
        values = bound[1].elements if isinstance(bound[1], cst.Tuple) else [bound[1]]
        for target, value in zip(targets, values, strict=False):
            name = target.value if isinstance(target, cst.Element) else target
            size = code(value.value if isinstance(value, cst.Element) else value)
            if isinstance(name, cst.Name) and size.endswith((".size(-2)", ".shape[-2]")):
                result.add(name.value)
    return result


def _counts_back(subscript: cst.Subscript) -> bool:
    """Whether a slice starts at a difference of lengths."""
    return any(
        isinstance(e.slice, cst.Slice)
        and isinstance(e.slice.lower, cst.BinaryOperation)
        and isinstance(e.slice.lower.operator, cst.Subtract)
        for e in subscript.slice
    )
