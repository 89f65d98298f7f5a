"""``rmpad/flat-mask``: a padding mask is brought into shape only where it is a tensor."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.packable import MASK, shapes_mask
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import expression, find, parameters


class FlatMask:
    id = "rmpad/flat-mask"
    roles = frozenset({Role.WRAPPER, Role.BACKBONE})
    summary = "leaves a packing as it is where a padding mask is given two dimensions"
    why = "a packing stands in the mask's place, and has no dimensions"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        if attention_mask is not None and attention_mask.ndim < 4:
            attention_mask = attention_mask.view(input_ids.shape[0], -1)
        return attention_mask
""",
            "CaseModel.forward",
            """
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim < 4:
            attention_mask = attention_mask.view(input_ids.shape[0], -1)
        return attention_mask
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        if attention_mask is not None:
            attention_mask = attention_mask.cumsum(-1)
        return attention_mask
""",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        if MASK not in parameters(site.function):
            return NotApplicable()
        edits = [
            Edit(branch.test.left, expression(f"isinstance({MASK}, torch.Tensor)"))
            for branch in find(site.function.body, cst.If)
            if shapes_mask(branch) and isinstance(branch.test, cst.BooleanOperation)
        ]
        return Edits(edits) if edits else NotApplicable()
