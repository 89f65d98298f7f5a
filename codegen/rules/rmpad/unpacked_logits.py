"""``rmpad/unpacked-logits``: logits go back into the caller's padded shape where that is wanted."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.rmpad.packed_input import packing_name
from codegen.syntax import arguments, code, find, names, statement, statements

UNPACKED = "unpacked"


class UnpackedLogits:
    id = "rmpad/unpacked-logits"
    roles = frozenset({Role.HEAD})
    summary = "returns logits of the batch as it came in, except while training"
    why = "evaluation compares logits with padded labels; a training step has no use for logits of padding"
    cases = (
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None, labels=None):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels)
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x, attention_mask=None, labels=None):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels)

        logits = unpacked(self, logits, attention_mask)
        return Output(loss=loss, logits=logits)
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None):
        return Output(logits=self.lm_head(x))
""",
            "CaseForCausalLM.forward",
            refuses="Output(logits=self.lm_head(x))",
        ),
        Case("class CaseForCausalLM:\n    def forward(self, x):\n        return x\n", "CaseForCausalLM.forward"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if UNPACKED in names(function.body):
            return NotApplicable()
        outputs = [
            r
            for r in find(function.body, cst.Return)
            if isinstance(r.value, cst.Call) and "logits" in arguments(r.value)
        ]
        if not outputs:
            return NotApplicable()
        last = outputs[-1]
        assert isinstance(last.value, cst.Call)
        given = arguments(last.value)["logits"].value
        lines = statements(function)
        returned = arguments(last.value).get("loss")
        loss = code(returned.value) if returned is not None else "loss"
        losses = [i for i, line in enumerate(lines) if isinstance(line, cst.If) and loss in names(line)]
        if len(outputs) != 1 or not isinstance(given, cst.Name) or not losses:
            return site.refusal(
                self.id,
                last,
                "one output with `logits=<name>`, after a branch that computes the loss",
                f"`{code(last.value)}`",
                "teach rules/rmpad/unpacked_logits.py this head",
            )
        anchor = lines[losses[0]]
        new = statement(f"{given.value} = {UNPACKED}(self, {given.value}, {packing_name(function)})")
        flat = cst.FlattenSentinel([anchor, new.with_changes(leading_lines=[cst.EmptyLine(indent=False)])])
        return Edits([Edit(anchor, flat)], {UNPACKED: "runtime.training.outputs"})
