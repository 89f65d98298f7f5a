"""``qeff/position-embedding``: a learned position table is looked up with padding sent to row 0."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import code, expression, find, self_attribute

TABLES = ("nn.Embedding", "Embedding", "torch.nn.Embedding")


class PositionEmbedding:
    id = "qeff/position-embedding"
    roles = frozenset({Role.BACKBONE})
    summary = "looks learned positions up with padding (-1) clamped to row 0"
    why = "padding has position -1, which no table has; its row is never read again"
    cases = (
        Case(
            """
class CaseModel:
    def __init__(self, config):
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
    def forward(self, x, position_ids):
        return x + self.wpe(position_ids)
""",
            "CaseModel.forward",
            """
    def forward(self, x, position_ids):
        return x + self.wpe(position_ids.clamp(min=0))
""",
        ),
        Case(
            "class CaseModel:\n    def forward(self, x, position_ids):\n        return self.rotary(x, position_ids)\n",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        attributes = site.module.attributes(site.cls)
        edits = []
        for call in find(site.function.body, cst.Call):
            attribute = self_attribute(call.func)
            value = attributes.get(attribute) if attribute is not None else None
            if isinstance(value, cst.Call) and code(value.func) in TABLES:
                edits += [
                    Edit(a.value, expression("position_ids.clamp(min=0)"))
                    for a in call.args
                    if isinstance(a.value, cst.Name) and a.value.value == "position_ids"
                ]
        return Edits(edits) if edits else NotApplicable()
