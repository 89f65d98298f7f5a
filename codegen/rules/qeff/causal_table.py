"""``qeff/causal-table``: rows of a table of visible keys are those of the queries' positions."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.cache_address import with_parameters
from codegen.syntax import (
    arguments,
    assignment,
    code,
    every_statement,
    expression,
    find,
    parameters,
    self_attribute,
    with_keywords,
)

POSITIONS = "position_ids"


class CausalTable:
    id = "qeff/causal-table"
    roles = frozenset({Role.ATTENTION, Role.PART})
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
def eager(module, query, key):
    query_length, key_length = query.size(-2), key.size(-2)
    return module.bias[:, :, key_length - query_length : key_length, :key_length]
""",
            "eager",
            """
def eager(module, query, key, position_ids: torch.LongTensor | None = None):
    query_length, key_length = query.size(-2), key.size(-2)
    return table_rows(module.bias, position_ids, key_length)
""",
        ),
        Case(
            """
def eager(module, query, key):
    query_length, key_length = query.size(-2), key.size(-2)
    return module.bias[:, :, key_length - query_length : key_length, :key_length]

class CaseAttention:
    def forward(self, query, key):
        return eager(self, query, key)
""",
            "CaseAttention.forward",
            """
    def forward(self, query, key):
        return eager(self, query, key, position_ids=position_ids)
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
        if site.role is Role.PART and site.cls:
            return NotApplicable()  # a table of its own is no attention's
        function = site.function
        edits = []
        brought = {}
        for subscript, length in table_rows(function):
            rows = expression("table_rows(TABLE, position_ids, LENGTH)", TABLE=subscript.value, LENGTH=length)
            edits.append(Edit(subscript, rows))
            brought["table_rows"] = "runtime.qeff.causal_table"
        if edits and not site.cls and POSITIONS not in parameters(function):
            edits.append(Edit(function.params, with_parameters(function.params, [POSITIONS])))
        for call in find(function.body, cst.Call) if site.cls else ():
            called = site.module.functions.get(call.func.value) if isinstance(call.func, cst.Name) else None
            if called is not None and POSITIONS not in arguments(call) and table_rows(called):
                edits.append(Edit(call, with_keywords(call, {POSITIONS: POSITIONS})))
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
        return Edits(edits, brought) if edits else NotApplicable()


def table_rows(function: cst.FunctionDef) -> list[tuple[cst.Subscript, cst.BaseExpression]]:
    """``self.table[:, :, keys - queries : keys, :keys]`` and the ``keys`` of each; in a function that is given the
    attention, its first parameter stands for self."""
    result = []
    first = next((p.name.value for p in function.params.params), "")
    for subscript in find(function.body, cst.Subscript):
        parts = [e.slice for e in subscript.slice]
        if len(parts) != 4 or not (isinstance(subscript.value, cst.Attribute) and code(subscript.value.value) == first):
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
