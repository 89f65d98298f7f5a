"""``rmpad/attention-dispatch``: the attention function is chosen by the mask: packed rows go to a variable-length one."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, dotted, every_statement, expression, find, names, statements

TABLE = "ALL_ATTENTION_FUNCTIONS"
CHOICE = "attention_for"
MASK = "attention_mask"


class AttentionDispatch:
    id = "rmpad/attention-dispatch"
    roles = frozenset({Role.ATTENTION})
    summary = "takes a variable-length attention function where the mask is one of packed sequences"
    why = "sequences of a packed row are attended to one by one, by a kernel that never forms a T x T mask"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, q, attention_mask):
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        return attention_interface(self, q, attention_mask)
""",
            "CaseAttention.forward",
            """
    def forward(self, q, attention_mask):
        attention_interface: Callable = attention_for(attention_mask, self.config._attn_implementation, eager_attention_forward)
        return attention_interface(self, q, attention_mask)
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, q, attention_mask):
        attention_interface: Callable = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attention_interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        return attention_interface(self, q, attention_mask)
""",
            "CaseAttention.forward",
            """
    def forward(self, q, attention_mask):
        attention_interface: Callable = attention_for(attention_mask, self.config._attn_implementation, eager_attention_forward)
        return attention_interface(self, q, attention_mask)
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, q):
        return ALL_ATTENTION_FUNCTIONS["sdpa"](self, q)
""",
            "CaseAttention.forward",
            refuses="ALL_ATTENTION_FUNCTIONS used in another way",
        ),
        Case("class CaseAttention:\n    def forward(self, q):\n        return q\n", "CaseAttention.forward"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if TABLE not in names(function.body) or site.family.adds_masks:
            return NotApplicable()  # a mask that is added is upstream's own kind: its table takes it as it is
        edits: list[Edit] = []
        handled = 0
        for line in every_statement(function.body):
            bound = assignment(line)
            if isinstance(line, cst.If) and (implementation := _looked_up(line)) is not None:
                handled += 1
                edits += _chosen(function, line, implementation)
            if bound is None or not isinstance(bound[1], cst.Call):
                continue
            call = bound[1]
            if dotted(call.func) == f"{TABLE}.get_interface" and len(call.args) == 2:
                chosen = expression(
                    f"{CHOICE}({MASK}, IMPLEMENTATION, EAGER)",
                    IMPLEMENTATION=call.args[0].value,
                    EAGER=call.args[1].value,
                )
                edits.append(Edit(call, chosen))
                handled += 1
        if not edits or handled != sum(1 for n in find(function.body, cst.Name) if n.value == TABLE):
            return site.refusal(
                self.id,
                function,
                f"`interface = {TABLE}.get_interface(implementation, eager_function)`",
                f"{TABLE} used in another way",
                "teach rules/rmpad/attention_dispatch.py this form",
            )
        return Edits(edits, {CHOICE: "runtime.training.attention"})


def _looked_up(branch: cst.If) -> cst.BaseExpression | None:
    """The implementation in ``if implementation != "eager": interface = TABLE[implementation]``."""
    lines = statements(branch)
    bound = assignment(lines[-1]) if lines and branch.orelse is None else None
    if bound is None or not isinstance(bound[1], cst.Subscript) or dotted(bound[1].value) != TABLE:
        return None
    index = bound[1].slice[0].slice
    return index.value if isinstance(index, cst.Index) else None


def _chosen(function: cst.FunctionDef, branch: cst.If, implementation: cst.BaseExpression) -> list[Edit]:
    """Edits of ``interface = eager`` in front of such a branch, and of the branch; none where there is no such line."""
    bound = assignment(statements(branch)[-1])
    assert bound is not None
    for line in every_statement(function.body):
        start = assignment(line)
        if start is not None and code(start[0]) == code(bound[0]) and isinstance(start[1], cst.Name):
            chosen = expression(
                f"{CHOICE}({MASK}, IMPLEMENTATION, EAGER)", IMPLEMENTATION=implementation, EAGER=start[1]
            )
            return [Edit(start[1], chosen), Edit(branch, cst.RemoveFromParent())]
    return []
