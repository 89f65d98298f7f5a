"""``rmpad/counted-positions``: positions that a model counts along its row are counted in each sequence."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.calls import bound_to
from codegen.recognize.counted import counted_here
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.rmpad.packed_input import IDS, MASK, POSITIONS, packing_name
from codegen.syntax import (
    arguments,
    assignment,
    dotted,
    every_statement,
    expression,
    find,
    names,
    parameters,
    self_attribute,
    statements,
    with_keywords,
)

OWN = "own_positions"
PAST = "past_key_values_length"


class CountedPositions:
    id = "rmpad/counted-positions"
    roles = frozenset({Role.WRAPPER, Role.BACKBONE, Role.ATTENTION})
    summary = "takes the positions of the packed tokens where upstream counts them along the row"
    why = "a packed row starts over with every sequence"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        position_ids = torch.arange(past_length, length + past_length, device=input_ids.device)
        return self.embed_positions(input_ids, position_ids=position_ids)
""",
            "CaseModel.forward",
            """
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        position_ids = own_positions(attention_mask, torch.arange(past_length, length + past_length, device=input_ids.device))
        return self.embed_positions(input_ids, position_ids=position_ids)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, cache_position=None, **kwargs):
        if cache_position is None:
            seen = past_key_values.get_seq_length()
            cache_position = torch.arange(seen, seen + input_ids.shape[1])
        return self.embed_positions(input_ids, position_ids=cache_position)
""",
            "CaseModel.forward",
            """
    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, cache_position=None, **kwargs):
        if cache_position is None:
            seen = past_key_values.get_seq_length()
            cache_position = own_positions(attention_mask, torch.arange(seen, seen + input_ids.shape[1]))
        return self.embed_positions(input_ids, position_ids=cache_position)
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, attention_mask=None, past_key_values=None):
        if self.tunes:
            positions = torch.arange(x.shape[1], device=x.device) + past_key_values.get_seq_length()
            x = x * positions
        return past_key_values.update(x, x, self.layer_idx)
""",
            "CaseAttention.forward",
            """
    def forward(self, x, attention_mask=None, past_key_values=None):
        if self.tunes:
            positions = own_positions(attention_mask, torch.arange(x.shape[1], device=x.device) + past_key_values.get_seq_length())
            x = x * positions
        return past_key_values.update(x, x, self.layer_idx)
""",
        ),
        Case(
            """
class CasePositions:
    def forward(self, input_ids, past_key_values_length=0, position_ids=None):
        return position_ids

class CaseModel:
    def __init__(self, config):
        self.embed_positions = CasePositions()
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.embed_positions(input_ids, past_key_values_length=0)
""",
            "CaseModel.forward",
            """
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.embed_positions(input_ids, past_key_values_length=0, position_ids=own_positions(attention_mask, None))
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        if input_ids is None:
            raise ValueError("no ids")
        else:
            counted = torch.arange(input_ids.shape[1])
            return self.embed_positions(input_ids, position_ids=counted)
""",
            "CaseModel.forward",
            """
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        if input_ids is None:
            raise ValueError("no ids")
        else:
            counted = own_positions(attention_mask, torch.arange(input_ids.shape[1]))
            return self.embed_positions(input_ids, position_ids=counted)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, **kwargs):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])
        return self.embed_positions(position_ids)
""",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        labels = set(parameters(function))
        if OWN in names(function.body) or not labels & {IDS, MASK}:
            return NotApplicable()
        edits = []
        if IDS not in labels:  # below the embedding: anything counted along the row
            for line in every_statement(function.body):
                bound = assignment(line)
                if bound is not None and isinstance(bound[0], cst.Name) and _counts(bound[1]):
                    edits.append(Edit(bound[1], expression(f"{OWN}({MASK}, COUNTED)", COUNTED=bound[1])))
            return Edits(edits, {OWN: "runtime.training.packing"}) if edits else NotApplicable()
        top = statements(function)
        called, handed = {POSITIONS, *_given_as_positions(function)}, counted_here(function)
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is None or not isinstance(bound[0], cst.Name) or not _counts(bound[1]):
                continue
            name = bound[0].value
            own = name in called - labels or name in handed  # where it is a parameter, the caller's come first
            if own or (name == POSITIONS and any(line is one for one in top)):
                edits.append(Edit(bound[1], expression(f"{OWN}({packing_name(function)}, COUNTED)", COUNTED=bound[1])))
        for call in find(function.body, cst.Call):
            if self._counts_inside(site, call):
                edits.append(Edit(call, with_keywords(call, {POSITIONS: f"{OWN}({packing_name(function)}, None)"})))
        return Edits(edits, {OWN: "runtime.training.packing"}) if edits else NotApplicable()

    def _counts_inside(self, site: Site, call: cst.Call) -> bool:
        """``self.embed(..., past_key_values_length)`` of a part that would take positions and is given none."""
        attribute = self_attribute(call.func)
        for part in site.module.submodules(site.cls).get(attribute, ()) if attribute is not None else ():
            forward = site.module.method(part, "forward")
            given = bound_to(call, forward.node) if forward is not None else {}
            if forward is not None and PAST in given and POSITIONS not in given:
                return POSITIONS in parameters(forward.node)
        return False


def _given_as_positions(function: cst.FunctionDef) -> set[str]:
    """Names that calls are given as ``position_ids=name``."""
    given = (arguments(call).get(POSITIONS) for call in find(function.body, cst.Call))
    return {arg.value.value for arg in given if arg is not None and isinstance(arg.value, cst.Name)}


def _counts(value: cst.BaseExpression) -> bool:
    """``torch.arange(...)``, plus a number or not: one-dimensional."""
    if isinstance(value, cst.BinaryOperation) and isinstance(value.operator, cst.Add):
        return _counts(value.left)
    return isinstance(value, cst.Call) and dotted(value.func) == "torch.arange"
