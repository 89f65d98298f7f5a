"""``rmpad/auxiliary-loss``: a loss over router logits counts every packed token."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.rmpad.packed_input import packing_name
from codegen.syntax import code, expression, find

MASK = "attention_mask"
WHOLE = "of_all_tokens"


class AuxiliaryLoss:
    id = "rmpad/auxiliary-loss"
    roles = frozenset({Role.HEAD})
    summary = "computes losses of router logits over all packed tokens, without a padding mask"
    why = "router logits are those of packed tokens, every packed token is real, and ranks may share them"
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
        return of_all_tokens(balance, attention_mask)(x, attention_mask)
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
        packing = packing_name(function)
        edits = [
            Edit(call.func, expression(f"{WHOLE}(FUNCTION, {packing})", FUNCTION=call.func))
            for call in find(function.body, cst.Call)
            if isinstance(call.func, cst.Name)
            and call.func.value in site.module.functions
            and any(code(argument.value) == MASK for argument in call.args)
        ]
        return Edits(edits, {WHOLE: "runtime.training.outputs"}) if edits else NotApplicable()
