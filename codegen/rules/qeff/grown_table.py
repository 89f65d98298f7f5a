"""``qeff/grown-table``: a table of positions keeps the length it was made with."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, every_statement, find, names, self_attribute


class GrownTable:
    id = "qeff/grown-table"
    roles = frozenset({Role.PART})
    summary = "drops the branch that makes a longer table of positions when a sequence outgrows it"
    why = "a graph has constants of one length; a position beyond the model's own table is an error there"
    cases = (
        Case(
            """
class CaseEmbedding:
    def forward(self, position_ids, seen=0):
        position_ids = position_ids + self.offset
        max_pos = 2 + position_ids.shape[1] + seen
        if max_pos > self.weights.size(0):
            self.make_weights(max_pos, self.dim)
        return self.weights.index_select(0, position_ids.view(-1))
""",
            "CaseEmbedding.forward",
            """
    def forward(self, position_ids, seen=0):
        position_ids = position_ids + self.offset
        return self.weights.index_select(0, position_ids.view(-1))
""",
        ),
        Case(
            """
class CaseEmbedding:
    def forward(self, x, limit):
        if x.sum() > self.weights.size(0):
            return self.other(x)
        return self.weights[x]
""",
            "CaseEmbedding.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        edits = grown_tables(site.function)
        return Edits(edits) if edits else NotApplicable()


def grown_tables(function: cst.FunctionDef) -> list[Edit]:
    """The branches that only rebuild a table too short, and the lines that only compute the length they ask for."""
    branches = [line for line in every_statement(function.body) if isinstance(line, cst.If) and _only_grows(line)]
    asked = {n for branch in branches for n in names(branch.test)} - {"self"}
    gone = {id(s) for branch in branches for s in every_statement(branch)}
    edits = [Edit(branch, cst.RemoveFromParent()) for branch in branches]
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is None or not isinstance(bound[0], cst.Name) or bound[0].value not in asked:
            continue
        others = [o for o in every_statement(function.body) if id(o) not in gone and o is not line]
        if not any(isinstance(o, cst.SimpleStatementLine) and bound[0].value in names(o) for o in others):
            edits.append(Edit(line, cst.RemoveFromParent()))
    return edits


def _only_grows(branch: cst.If) -> bool:
    """``if [self.t is None or] wanted > self.t.size(0): self.t = ...`` or ``self.make(...)``."""
    lengths = [c for c in find(branch.test, cst.Comparison) if _exceeds_table(c)]
    lines = list(every_statement(branch.body))
    return bool(lengths) and branch.orelse is None and all(_builds(line) for line in lines)


def _exceeds_table(comparison: cst.Comparison) -> bool:
    target = comparison.comparisons[0]
    if len(comparison.comparisons) != 1 or not isinstance(target.operator, cst.GreaterThan):
        return False
    length = target.comparator
    if isinstance(length, cst.Call):  # self.table.size(0)
        return (
            isinstance(length.func, cst.Attribute)
            and length.func.attr.value == "size"
            and len(length.args) == 1
            and self_attribute(length.func.value) is not None
        )
    return (  # self.table.shape[0]
        isinstance(length, cst.Subscript)
        and isinstance(length.value, cst.Attribute)
        and length.value.attr.value == "shape"
        and self_attribute(length.value.value) is not None
    )


def _builds(line: cst.BaseStatement) -> bool:
    bound = assignment(line)
    if bound is not None:
        return self_attribute(bound[0]) is not None
    small = line.body[0] if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 else None
    return (
        isinstance(small, cst.Expr)
        and isinstance(small.value, cst.Call)
        and self_attribute(small.value.func) is not None
    )
