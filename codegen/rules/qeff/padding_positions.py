"""``qeff/padding-positions``: positions numbered from the padding token's id on are position_ids plus that number."""

from __future__ import annotations

import ast

import libcst as cst

from codegen.ir import Role
from codegen.recognize.wording import says
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import expression, find, parameters, self_attribute
from codegen.upstream import UpstreamModule

POSITIONS = "position_ids"
# fairseq's make_positions, as every file that has it says it
NUMBERING = """
mask = input_ids.ne(padding_idx).int()
incremental_indices = (torch.cumsum(mask, dim=1).type_as(mask) + past_key_values_length) * mask
return incremental_indices.long() + padding_idx
"""


class PaddingPositions:
    id = "qeff/padding-positions"
    roles = frozenset({Role.PART})
    summary = "numbers tokens by position_ids + padding_idx + 1 instead of counting those that are not padding"
    why = "a token's number is its position counted from padding_idx + 1; padding (-1) gets padding_idx, as upstream's"
    cases = (
        Case(
            """
class CaseEmbedding:
    def forward(self, input_ids, past_key_values_length=0):
        position_ids = self.number(input_ids, self.padding_idx, past_key_values_length).to(input_ids.device)
        return self.weights.index_select(0, position_ids.view(-1))
    def number(self, input_ids, padding_idx, past_key_values_length=0):
        mask = input_ids.ne(padding_idx).int()
        incremental_indices = (torch.cumsum(mask, dim=1).type_as(mask) + past_key_values_length) * mask
        return incremental_indices.long() + padding_idx
""",
            "CaseEmbedding.forward",
            """
    def forward(self, input_ids, past_key_values_length=0, position_ids=None):
        position_ids = (position_ids + self.padding_idx + 1).to(input_ids.device)
        return self.weights.index_select(0, position_ids.view(-1))
""",
        ),
        Case(
            "class CaseEmbedding:\n    def forward(self, input_ids, position_ids):\n        return self.t[position_ids]\n",
            "CaseEmbedding.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        if not site.cls or site.function.name.value != "forward":
            return NotApplicable()
        edits = padding_positions(site.module, site.cls, site.function)
        return Edits(edits) if edits else NotApplicable()


def padding_positions(module: UpstreamModule, cls: str, function: cst.FunctionDef) -> list[Edit]:
    """The numbering calls of a forward that is given no positions, and the parameter that takes their place."""
    if POSITIONS in parameters(function):
        return []  # it numbers tokens only where it is given none
    edits: list[Edit] = []
    for call in find(function.body, cst.Call):
        name = self_attribute(call.func)
        method = module.method(cls, name) if name is not None else None
        if method is None or len(call.args) != 3:
            continue
        if _numbers_from_padding(module, f"{method.owner}.{method.name}"):
            number = expression("(position_ids + PADDING + 1)", PADDING=call.args[1].value)
            edits.append(Edit(call, number))
    if edits:
        parameter = cst.Param(cst.Name(POSITIONS), default=cst.Name("None"))
        plain = [p.with_changes(comma=cst.MaybeSentinel.DEFAULT) for p in function.params.params]
        edits.append(Edit(function.params, function.params.with_changes(params=[*plain, parameter])))
    return edits


def _numbers_from_padding(module: UpstreamModule, where: str) -> bool:
    function = module.definition(where)
    return isinstance(function, ast.FunctionDef) and says(function, NUMBERING)
