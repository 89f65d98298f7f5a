"""``qeff/expert-counts``: a histogram of expert numbers becomes a count of equals."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import arguments, code, dotted, expression, find

SOURCE = "runtime.qeff.experts"


class ExpertCounts:
    id = "qeff/expert-counts"
    roles = frozenset({Role.PART})
    summary = "counts the rows of each expert by comparison instead of torch.histc"
    why = "no ONNX operator makes a histogram"
    cases = (
        Case(
            """
class CaseExperts:
    def forward(self, index):
        return torch.histc(index.flatten().to(torch.float32), bins=self.num, min=0, max=self.num - 1).to(torch.long)
""",
            "CaseExperts.forward",
            """
    def forward(self, index):
        return count_of_each(index.flatten(), self.num).to(torch.long)
""",
        ),
        Case(
            """
class CaseExperts:
    def forward(self, scores):
        return torch.histc(scores, bins=10, min=0, max=1)
""",
            "CaseExperts.forward",
            refuses="`torch.histc(scores, bins=10, min=0, max=1)`",
        ),
        Case("class CaseMLP:\n    def forward(self, x):\n        return self.down(x)\n", "CaseMLP.forward"),
    )

    def match(self, site: Site) -> Match:
        edits: list[Edit] = []
        for call in find(site.function.body, cst.Call):
            if dotted(call.func) != "torch.histc":
                continue
            given = {label: arg.value for label, arg in arguments(call).items()}
            bins = given.get("bins")
            whole = bins is not None and {k: code(v) for k, v in given.items()} == {
                "bins": code(bins),
                "min": "0",
                "max": f"{code(bins)} - 1",
            }
            numbers = _numbers(call.args[0].value)
            if bins is None or not whole or numbers is None:
                return site.refusal(
                    self.id,
                    call,
                    "torch.histc(index.to(torch.float32), bins=n, min=0, max=n - 1): one bin for each whole number",
                    f"`{code(call)}`",
                    "teach rules/qeff/expert_counts.py this histogram",
                )
            edits.append(Edit(call, expression("count_of_each(INDEX, EXPERTS)", INDEX=numbers, EXPERTS=bins)))
        return Edits(edits, {"count_of_each": SOURCE}) if edits else NotApplicable()


def _numbers(value: cst.BaseExpression) -> cst.BaseExpression | None:
    """``x`` for ``x.to(torch.float32)``: the histogram of upstream takes no integers."""
    if not isinstance(value, cst.Call) or not isinstance(value.func, cst.Attribute):
        return None
    cast = value.func.attr.value in ("to", "float") and [code(a.value) for a in value.args] in ([], ["torch.float32"])
    return value.func.value if cast else None
