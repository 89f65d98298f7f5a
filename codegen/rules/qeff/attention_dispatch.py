"""``qeff/attention-dispatch``: the attention function is upstream's eager one, called directly."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, dotted, every_statement, find, names

TABLE = "ALL_ATTENTION_FUNCTIONS"


class AttentionDispatch:
    id = "qeff/attention-dispatch"
    roles = frozenset({Role.ATTENTION, Role.PART})
    summary = "calls the eager attention function instead of looking one up"
    why = "only the eager mathematics takes a boolean mask over a fixed buffer and exports as one graph"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, q):
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out, _ = attention_interface(self, q)
        return out
""",
            "CaseAttention.forward",
            """
    def forward(self, q):
        out, _ = eager_attention_forward(self, q)
        return out
""",
        ),
        Case(
            """
def eager_attention_forward(module, q):
    return q

class CaseAttention:
    def forward(self, q):
        attention_interface: Callable = eager_attention_forward
        if self.config._attn_implementation != "eager":
            attention_interface = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        return attention_interface(self, q)
""",
            "CaseAttention.forward",
            """
    def forward(self, q):
        return eager_attention_forward(self, q)
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, q):
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(eager_attention_forward, self.config._attn_implementation)
        return interface(self, q)
""",
            "CaseAttention.forward",
            refuses="ALL_ATTENTION_FUNCTIONS used in another way",
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
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if TABLE not in names(function.body):
            return NotApplicable()
        edits: list[Edit] = []
        eager: dict[str, str] = {}
        handled = 0
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is not None and isinstance(bound[0], cst.Name):
                target, value = bound[0].value, bound[1]
                if (
                    isinstance(value, cst.Call)
                    and dotted(value.func) == f"{TABLE}.get_interface"
                    and len(value.args) == 2
                    and isinstance(value.args[1].value, cst.Name)
                ):
                    eager[target] = code(value.args[1].value)
                    edits.append(Edit(line, cst.RemoveFromParent()))
                    handled += 1
                elif (
                    isinstance(value, cst.Name)
                    and value.value in site.module.functions
                    and _looked_up(function, target)
                ):
                    eager[target] = value.value
                    edits.append(Edit(line, cst.RemoveFromParent()))
            elif isinstance(line, cst.If) and _only_looks_up(line):
                edits.append(Edit(line, cst.RemoveFromParent()))
                handled += 1
        used = sum(1 for n in find(function.body, cst.Name) if n.value == TABLE)
        if handled != used or not eager:
            return site.refusal(
                self.id,
                function,
                f"`interface = {TABLE}.get_interface(implementation, eager_function)`",
                f"{TABLE} used in another way",
                "teach rules/qeff/attention_dispatch.py this form",
            )
        removed = {id(e.node) for e in edits}
        for line in every_statement(function.body):
            if id(line) in removed or not isinstance(line, cst.SimpleStatementLine):
                continue
            for call in find(line, cst.Call):
                if isinstance(call.func, cst.Name) and call.func.value in eager:
                    edits.append(Edit(call.func, cst.Name(eager[call.func.value])))
        return Edits(edits)


def _only_looks_up(branch: cst.If) -> bool:
    """``if implementation != "eager": interface = TABLE[implementation]``, possibly with a warning beside it."""
    return branch.orelse is None and any(
        (bound := assignment(line)) is not None
        and isinstance(bound[1], cst.Subscript)
        and dotted(bound[1].value) == TABLE
        for line in every_statement(branch.body)
    )


def _looked_up(function: cst.FunctionDef, target: str) -> bool:
    return any(
        isinstance(line, cst.If) and _only_looks_up(line) and target in names(line.body)
        for line in every_statement(function.body)
    )
