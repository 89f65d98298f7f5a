"""``rmpad/packed-output``: what comes out says where each sequence of its packed row lies."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.rmpad.packed_input import IDS, packing_name
from codegen.syntax import code, expression, find, parameters

WRAP = "with_packing"


class PackedOutput:
    id = "rmpad/packed-output"
    roles = frozenset({Role.WRAPPER, Role.BACKBONE})
    summary = "adds the ends of the packed sequences and their places in the batch to the output"
    why = "who uses hidden states [1, T, hidden] alone (a loss, a pooler) needs to know which token is whose"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return BaseModelOutputWithPast(last_hidden_state=self.embed(input_ids))
""",
            "CaseModel.forward",
            """
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return with_packing(BaseModelOutputWithPast(last_hidden_state=self.embed(input_ids)), attention_mask)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.embed(input_ids)
""",
            "CaseModel.forward",
            refuses="return self.embed(input_ids)",
        ),
        Case("class CaseLayer:\n    def forward(self, x):\n        return x\n", "CaseLayer.forward"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if function.name.value != "forward" or IDS not in parameters(function):
            return NotApplicable()
        outputs = []
        for returned in find(function.body, cst.Return):
            value = returned.value
            if isinstance(value, cst.Call) and code(value.func) == WRAP:
                return NotApplicable()
            if isinstance(value, cst.Call) and code(value.func).endswith(("WithPast", "Output", "CrossAttentions")):
                outputs.append(value)
            elif not (isinstance(value, cst.Call) and code(value.func) == "tuple"):  # return_dict=False
                return site.refusal(
                    self.id,
                    returned,
                    "every return to be of an output class, or of a tuple",
                    f"`{code(returned)}`",
                    "teach rules/rmpad/packed_output.py this return",
                )
        packing = packing_name(function)
        edits = [Edit(o, expression(f"{WRAP}(OUTPUT, {packing})", OUTPUT=o)) for o in outputs]
        return Edits(edits, {WRAP: "runtime.training.outputs"}) if edits else NotApplicable()
