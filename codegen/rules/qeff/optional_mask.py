"""``qeff/optional-mask``: a mask that upstream builds only for a caller that gives one is built always."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.mask_factories import BUILDERS
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import arguments, code, find, names, parameters

GIVEN = "attention_mask"  # the factories' own name for the caller's mask


class OptionalMask:
    id = "qeff/optional-mask"
    roles = frozenset({Role.HEAD, Role.BACKBONE, Role.WRAPPER, Role.LAYER})
    summary = "builds the causal mask whether or not a mask is given"
    why = "no attention mask is an input of the graph, and a buffer's unused slots must be masked all the same"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        causal_mask = None
        if attention_mask is not None:
            causal_mask = create_causal_mask(config=self.config, attention_mask=attention_mask)
        return causal_mask
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask=None):
        causal_mask = None
        causal_mask = create_causal_mask(config=self.config, attention_mask=attention_mask)
        return causal_mask
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, mask=None):
        return create_causal_mask(self.config, attention_mask=mask) if mask is not None else None
""",
            "CaseModel.forward",
            """
    def forward(self, x, mask=None):
        return create_causal_mask(self.config, attention_mask=mask)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        if attention_mask is not None and x.shape[1] > 1:
            x = create_causal_mask(config=self.config, attention_mask=attention_mask)
        return x
""",
            "CaseModel.forward",
            refuses="`if attention_mask is not None and x.shape[1] > 1`",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        if attention_mask is not None:
            x = create_causal_mask(config=self.config, attention_mask=attention_mask)
        else:
            x = self.other(x)
        return x
""",
            "CaseModel.forward",
            refuses="`if attention_mask is not None`, with an else",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        if self.config.causal:
            x = create_causal_mask(config=self.config, attention_mask=attention_mask)
        return x
""",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        if not names(site.function.body) & set(BUILDERS):
            return NotApplicable()
        edits: list[Edit] = []
        branches: list[cst.If | cst.IfExp] = [*find(site.function.body, cst.If), *find(site.function.body, cst.IfExp)]
        for branch in branches:
            given = _given(branch.body) & set(parameters(site.function))
            wanted = {f"{name} is not None" for name in given}
            if code(branch.test) in wanted:
                built = _always(branch)
                if built is None:
                    return self._refuse(site, branch, ", with an else")
                edits.append(Edit(branch, built))
            elif any(code(part) in wanted for part in find(branch.test, cst.Comparison)):
                return self._refuse(site, branch)
        return Edits(edits) if edits else NotApplicable()

    def _refuse(self, site: Site, branch: cst.If | cst.IfExp, more: str = "") -> Match:
        return site.refusal(
            self.id,
            branch,
            "a mask built always, or exactly where a mask is given",
            f"`if {code(branch.test)}`{more}",
            "a variant is given no mask, and would go without; teach rules/qeff/optional_mask.py this condition",
        )


def _given(body: cst.BaseSuite | cst.BaseExpression) -> set[str]:
    """Names that are handed to a mask factory there as the caller's mask."""
    calls = (c for c in find(body, cst.Call) if isinstance(c.func, cst.Name) and c.func.value in BUILDERS)
    found = (arguments(call).get(GIVEN) for call in calls)
    return {arg.value.value for arg in found if arg is not None and isinstance(arg.value, cst.Name)}


def _always(branch: cst.If | cst.IfExp) -> cst.BaseExpression | cst.FlattenSentinel[cst.BaseStatement] | None:
    """What stands where a mask is given; None where something else stands in its absence."""
    if isinstance(branch, cst.IfExp):
        return branch.body if code(branch.orelse) == "None" else None
    if branch.orelse is not None:
        return None
    return cst.FlattenSentinel([s for s in branch.body.body if isinstance(s, cst.BaseStatement)])
