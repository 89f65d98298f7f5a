"""``qeff/loss``: the head computes no loss."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import arguments, assignment, code, every_statement, find, names, parameters, walk, without_keywords

INPUT = "labels"
OUTPUTS = ("loss", "aux_loss")
ROUTER = "output_router_logits"


class Loss:
    id = "qeff/loss"
    roles = frozenset({Role.HEAD})
    summary = "drops labels, loss and auxiliary loss"
    why = "inference returns the logits of one position a row; there is nothing to take a loss over"
    cases = (
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, labels=None, **kwargs):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels)
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x, **kwargs):
        logits = self.lm_head(x)
        return Output(logits=logits)
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, labels=None):
        output = (self.lm_head(x),)
        loss = None
        if labels is not None:
            loss = self.loss_function(output[0], labels)
        if not self.config.return_dict:
            return output if loss is None else (loss,) + output
        return Output(loss=loss, logits=output[0])
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x):
        output = (self.lm_head(x),)
        if not self.config.return_dict:
            return output
        return Output(logits=output[0])
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, labels=None):
        x = self.shift(x, labels)
        return Output(logits=self.lm_head(x))
""",
            "CaseForCausalLM.forward",
            refuses="x = self.shift(x, labels)",
        ),
        Case(
            "class CaseForCausalLM:\n    def forward(self, x):\n        return Output(logits=x)\n",
            "CaseForCausalLM.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if INPUT not in parameters(function):
            return NotApplicable()
        gone = {INPUT}
        edits: list[Edit] = [Edit(function.params, _without(function.params, INPUT))]
        for line in function.body.body:
            if not isinstance(line, cst.BaseStatement):
                continue
            if isinstance(line, cst.If) and _only_for_loss(line):
                edits.append(Edit(line, cst.RemoveFromParent()))
                continue
            bound = assignment(line)
            if bound is not None and isinstance(bound[0], cst.Name):
                if bound[0].value in _loss_names(function) and code(bound[1]) == "None":
                    gone.add(bound[0].value)
                    edits.append(Edit(line, cst.RemoveFromParent()))
        for returned in find(function.body, cst.Return):
            if isinstance(returned.value, cst.Call) and set(arguments(returned.value)) & set(OUTPUTS):
                edits.append(Edit(returned.value, without_keywords(returned.value, OUTPUTS)))
            elif isinstance(returned.value, cst.IfExp) and names(returned.value) & _loss_names(function):
                # return (loss,) + output if loss is not None else output
                sides = (returned.value.body, returned.value.orelse)
                without = [side for side in sides if not names(side) & _loss_names(function)]
                if len(without) == 1:
                    edits.append(Edit(returned.value, without[0]))
        removed = {id(e.node) for e in edits}
        for line in every_statement(function.body):
            if isinstance(line, cst.SimpleStatementLine) and not _inside(function, line, removed):
                left = names(line) & {INPUT}
                if left and not any(id(n) in removed for n in walk(line)):
                    return site.refusal(
                        self.id,
                        line,
                        "labels used for the loss alone",
                        f"`{code(line)}`",
                        "teach rules/qeff/loss.py this use",
                    )
        return Edits(edits)


def _loss_names(function: cst.FunctionDef) -> set[str]:
    """Variables that reach the output's loss fields."""
    result = set()
    for call in find(function.body, cst.Call):
        for label in OUTPUTS:
            given = arguments(call).get(label)
            if given is not None and isinstance(given.value, cst.Name):
                result.add(given.value.value)
    return result


def _only_for_loss(branch: cst.If) -> bool:
    """``if labels is not None: ...`` and ``if output_router_logits: aux_loss = ...``."""
    tested = names(branch.test)
    return branch.orelse is None and (INPUT in tested or ROUTER in tested or ROUTER in code(branch.test))


def _inside(function: cst.FunctionDef, line: cst.BaseStatement, removed: set[int]) -> bool:
    return any(
        id(outer) in removed and any(inner is line for inner in every_statement(outer))
        for outer in every_statement(function.body)
    )


def _without(params: cst.Parameters, name: str) -> cst.Parameters:
    kept = [p for p in params.params if p.name.value != name]
    return params.with_changes(params=kept, kwonly_params=[p for p in params.kwonly_params if p.name.value != name])
