"""``qeff/position-name``: ``position_ids`` keeps meaning positions where upstream reuses the name for their embedding."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, every_statement, names, reads, self_attribute

POSITIONS = "position_ids"
EMBEDDED = "position_embeds"


class PositionName:
    id = "qeff/position-name"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE})
    summary = "gives embedded positions a name of their own"
    why = "position_ids goes on to every layer, as the address of what it writes to the cache"
    cases = (
        Case(
            """
class CaseEmbedding(nn.Embedding):
    pass

class CaseModel:
    def __init__(self, config):
        self.embed = CaseEmbedding()
    def forward(self, x, position_ids=None):
        position_ids = self.embed(x, position_ids=position_ids)
        return x + position_ids.to(x.device)
""",
            "CaseModel.forward",
            """
    def forward(self, x, position_ids=None):
        position_embeds = self.embed(x, position_ids=position_ids)
        return x + position_embeds.to(x.device)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, position_ids=None):
        position_ids = position_ids.view(-1, 4)
        return self.embed(position_ids)
""",
            "CaseModel.forward",
        ),
        Case(
            """
class CaseEmbedding(nn.Embedding):
    pass

class CaseModel:
    def __init__(self, config):
        self.embed = CaseEmbedding()
    def forward(self, x, position_ids=None):
        if x is not None:
            position_ids = self.embed(position_ids)
        return x + position_ids
""",
            "CaseModel.forward",
            refuses="position_ids = self.embed(position_ids)",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        top = list(function.body.body)
        edits: list[Edit] = []
        found: cst.BaseStatement | None = None
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is None or not isinstance(bound[0], cst.Name) or bound[0].value != POSITIONS:
                continue
            if isinstance(bound[1], cst.Call) and self_attribute(bound[1].func) in site.module.submodules(site.cls):
                if found is not None or line not in top or EMBEDDED in names(function):
                    return site.refusal(
                        self.id,
                        line,
                        f"one unconditional `{POSITIONS} = self.<embedding>(...)`",
                        f"{POSITIONS} = self.{self_attribute(bound[1].func)}({POSITIONS})",
                        "teach rules/qeff/position_name.py which of the names are positions",
                    )
                found = line
                edits.append(Edit(bound[0], cst.Name(EMBEDDED)))
        if found is None:
            return NotApplicable()
        for later in top[top.index(found) + 1 :]:
            edits += [Edit(name, cst.Name(EMBEDDED)) for name in reads(later, {POSITIONS})]
        return Edits(edits)
