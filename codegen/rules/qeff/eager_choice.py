"""``qeff/eager-choice``: of the ways to compute attention that a method chooses from, the eager one stays."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import code, every_statement

IMPLEMENTATION = "self.config._attn_implementation"
EAGER = '"eager"'


class EagerChoice:
    id = "qeff/eager-choice"
    roles = frozenset({Role.LAYER, Role.ATTENTION, Role.PART})
    summary = "keeps the eager branch where the attention's implementation is tested by name"
    why = "only the eager mathematics takes a boolean mask over a fixed buffer and exports as one graph"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, q, mask, output_attentions=False):
        if self.config._attn_implementation == "sdpa" and not output_attentions:
            out = fast(q, mask)
        else:
            out = slow(q) + mask
        return out
""",
            "CaseAttention.forward",
            """
    def forward(self, q, mask, output_attentions=False):
        out = slow(q) + mask
        return out
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, q):
        if self.config._attn_implementation == "eager":
            return q
        return q + 1
""",
            "CaseAttention.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        edits: list[Edit] = []
        for line in every_statement(site.function.body):
            if not isinstance(line, cst.If) or not names_another(line.test):
                continue
            if line.orelse is None:
                edits.append(Edit(line, cst.RemoveFromParent()))
            elif isinstance(line.orelse, cst.If):
                edits.append(Edit(line, line.orelse))
            else:
                kept = [s for s in line.orelse.body.body if isinstance(s, cst.BaseStatement)]
                edits.append(Edit(line, cst.FlattenSentinel(kept)))
        return Edits(edits) if edits else NotApplicable()


def names_another(test: cst.BaseExpression) -> bool:
    """``self.config._attn_implementation == "sdpa"``, alone or as the first of conditions that must all hold."""
    if isinstance(test, cst.BooleanOperation) and isinstance(test.operator, cst.And):
        return names_another(test.left)
    if not isinstance(test, cst.Comparison) or len(test.comparisons) != 1:
        return False
    target = test.comparisons[0]
    named = isinstance(target.comparator, cst.SimpleString) and code(target.comparator) != EAGER
    return code(test.left) == IMPLEMENTATION and isinstance(target.operator, cst.Equal) and named
