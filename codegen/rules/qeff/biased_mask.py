"""``qeff/biased-mask``: a bias that upstream writes into its mask is written into the boolean one's visible places."""

from __future__ import annotations

import libcst as cst

from codegen.ir import FamilyIR, Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, every_statement, find
from codegen.upstream import UpstreamModule

FILLS = ("torch.masked_fill",)


class BiasedMask:
    id = "qeff/biased-mask"
    roles = frozenset({Role.WRAPPER, Role.BACKBONE})
    summary = "fills a bias where the boolean mask hides, instead of where an additive mask is below -1"
    why = "the mask is boolean, True where hidden; upstream's own boolean masks, True where visible, never come here"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, bias):
        causal_mask = create_causal_mask(inputs_embeds=x)
        if bias is not None:
            if causal_mask.dtype == torch.bool:
                causal_mask = torch.where(causal_mask, 0.0, lowest)
            causal_mask = torch.masked_fill(bias / 2, causal_mask < -1, lowest)
        return causal_mask
""",
            "CaseModel.forward",
            """
    def forward(self, x, bias):
        causal_mask = create_causal_mask(inputs_embeds=x)
        if bias is not None:
            causal_mask = torch.masked_fill(bias / 2, causal_mask, lowest)
        return causal_mask
""",
        ),
        Case("class CaseModel:\n    def forward(self, x):\n        return x < -1\n", "CaseModel.forward"),
    )

    def match(self, site: Site) -> Match:
        edits = _biased(site.function)
        return Edits(edits) if edits else NotApplicable()


def has_biased_mask(module: UpstreamModule, family: FamilyIR) -> bool:
    """Whether the masks that reach the attention may carry a bias."""
    classes = [c.name for role in BiasedMask.roles for c in family.with_role(role)]
    return any(_biased(method.node) for cls in classes for method in module.reachable_methods(cls))


def _biased(function: cst.FunctionDef) -> list[Edit]:
    edits: list[Edit] = []
    filled: set[str] = set()
    for call in find(function.body, cst.Call):
        condition = call.args[1].value if code(call.func) in FILLS and len(call.args) == 3 else None
        if isinstance(condition, cst.Comparison) and isinstance(condition.left, cst.Name):
            target = condition.comparisons[0]
            if isinstance(target.operator, cst.LessThan) and code(target.comparator) == "-1":
                edits.append(Edit(condition, condition.left))
                filled.add(condition.left.value)
    for line in every_statement(function.body):
        if isinstance(line, cst.If) and code(line.test) in {f"{mask}.dtype == torch.bool" for mask in filled}:
            bound = [assignment(inner) for inner in every_statement(line.body)]
            if line.orelse is None and all(b is not None and code(b[0]) in filled for b in bound):
                edits.append(Edit(line, cst.RemoveFromParent()))
    return edits
