"""``rmpad/auxiliary-loss``: a loss over router logits counts every packed token."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.rmpad.packed_input import packing_name
from codegen.syntax import code, expression, find

MASK = "attention_mask"
WRAP = "auxiliary_mask"


class AuxiliaryLoss:
    id = "rmpad/auxiliary-loss"
    roles = frozenset({Role.HEAD})
    summary = "gives functions of the file that take the padding mask none where the batch is packed"
    why = "router logits are those of packed tokens, and every packed token is real"
    cases = (
        Case(
            """
def balance(gates, attention_mask=None):
    return gates

class CaseForCausalLM:
    def forward(self, x, attention_mask=None):
        return balance(x, attention_mask)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x, attention_mask=None):
        return balance(x, auxiliary_mask(attention_mask))
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None):
        return self.model(x, attention_mask=attention_mask)
""",
            "CaseForCausalLM.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        edits = []
        for call in find(function.body, cst.Call):
            if isinstance(call.func, cst.Name) and call.func.value in site.module.functions:
                for argument in call.args:
                    if code(argument.value) == MASK:
                        edits.append(Edit(argument.value, expression(f"{WRAP}({packing_name(function)})")))
        return Edits(edits, {WRAP: "runtime.training.outputs"}) if edits else NotApplicable()
