"""``qeff/logits-slice``: logits of the last real position of each row only."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.loss import _without
from codegen.syntax import arguments, assignment, code, every_statement, expression, find, names, parameters

PARAMETER = "logits_to_keep"


class LogitsSlice:
    id = "qeff/logits-slice"
    roles = frozenset({Role.HEAD})
    summary = "projects the hidden state of each row's largest position, and returns float32 logits"
    why = "rows are padded independently, so the last column is not every row's last token"
    cases = (
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, logits_to_keep=0):
        slice_indices = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, slice_indices, :])
        return Output(logits=logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x):
        logits = self.lm_head(last_token(x, position_ids))
        return Output(logits=logits.float())
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, logits_to_keep=0):
        slice_indices = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, slice_indices, :])
        return Output(logits=logits * self.scale)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x):
        logits = self.lm_head(last_token(x, position_ids))
        return Output(logits=(logits * self.scale).float())
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, logits_to_keep=0):
        return Output(logits=self.lm_head(x[logits_to_keep]))
""",
            "CaseForCausalLM.forward",
            refuses="no `hidden_states[:, slice_indices, :]`",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if PARAMETER not in names(function.body):
            return NotApplicable()
        edits: list[Edit] = []
        if PARAMETER in parameters(function):
            edits.append(Edit(function.params, _without(function.params, PARAMETER)))
        slices: set[str] = set()
        for line in every_statement(function.body):
            bound = assignment(line)
            if (
                bound is not None
                and isinstance(bound[0], cst.Name)
                and isinstance(bound[1], cst.IfExp)
                and PARAMETER in names(bound[1])
            ):
                slices.add(bound[0].value)
                edits.append(Edit(line, cst.RemoveFromParent()))
        sliced = [s for s in find(function.body, cst.Subscript) if _is_slice_of_positions(s, slices)]
        if len(sliced) != 1:
            return site.refusal(
                self.id,
                function,
                "one `hidden_states[:, slice_indices, :]` before the output projection",
                "no `hidden_states[:, slice_indices, :]`" if not sliced else f"{len(sliced)} of them",
                "teach rules/qeff/logits_slice.py how this head chooses positions",
            )
        edits.append(Edit(sliced[0], expression("last_token(HIDDEN, position_ids)", HIDDEN=sliced[0].value)))
        for returned in find(function.body, cst.Return):
            given = arguments(returned.value).get("logits") if isinstance(returned.value, cst.Call) else None
            if given is not None and not code(given.value).endswith(".float()"):
                edits.append(Edit(given.value, expression("LOGITS.float()", LOGITS=_one_term(given.value))))
        return Edits(edits, {"last_token": "runtime.qeff.logits"})


def _one_term(value: cst.BaseExpression) -> cst.BaseExpression:
    """The value such that an attribute of it can be written: ``a * b`` in parentheses."""
    if value.lpar or isinstance(value, cst.Name | cst.Attribute | cst.Subscript | cst.Call):
        return value
    return value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])


def _is_slice_of_positions(node: cst.Subscript, slices: set[str]) -> bool:
    return len(node.slice) in (2, 3) and code(node.slice[1].slice) in slices and code(node.slice[0].slice) == ":"


class WholeLogits:
    """The same for a head that has no ``logits_to_keep``: the projection takes all positions there."""

    id = "qeff/whole-logits"
    roles = frozenset({Role.HEAD})
    summary = LogitsSlice.summary
    why = LogitsSlice.why
    cases = (
        Case(
            """
class CaseForCausalLM:
    def __init__(self, config):
        self.lm_head = nn.Linear(4, 5)
    def forward(self, x):
        lm_logits = self.lm_head(x)
        return Output(logits=lm_logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x):
        lm_logits = self.lm_head(last_token(x, position_ids))
        return Output(logits=lm_logits.float())
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def __init__(self, config):
        self.lm_head = nn.Linear(4, 5)
    def forward(self, x):
        logits = self.lm_head(last_token(x, position_ids))
        return Output(logits=logits.float())
""",
            "CaseForCausalLM.forward",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x):
        return self.model(x)
""",
            "CaseForCausalLM.forward",
            refuses="0 such calls",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if "last_token" in names(function.body):
            return NotApplicable()  # `qeff/logits-slice` was there
        returned = [
            given
            for r in find(function.body, cst.Return)
            if isinstance(r.value, cst.Call) and (given := arguments(r.value).get("logits")) is not None
        ]
        projections = []
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is not None and any(code(bound[0]) == code(g.value) for g in returned):
                projections += [c for c in find(bound[1], cst.Call) if _is_projection(site, c)]
        if len(projections) != 1 or len(returned) != 1:
            return site.refusal(
                self.id,
                function,
                "`logits = self.<projection>(hidden_states)` that the output returns as logits",
                f"{len(projections)} such calls",
                "teach rules/qeff/logits_slice.py how this head makes its logits",
            )
        hidden = projections[0].args[0].value
        return Edits(
            [
                Edit(hidden, expression("last_token(HIDDEN, position_ids)", HIDDEN=hidden)),
                Edit(returned[0].value, expression("LOGITS.float()", LOGITS=returned[0].value)),
            ],
            {"last_token": "runtime.qeff.logits"},
        )


def _is_projection(site: Site, call: cst.Call) -> bool:
    label = code(call.func)
    return (
        label.startswith("self.")
        and len(call.args) == 1
        and label.removeprefix("self.") in site.module.attributes(site.cls)
    )
