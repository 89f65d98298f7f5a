"""``rmpad/packed-input``: valid tokens of the batch are packed into one row before anything else happens."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import (
    assignment,
    code,
    every_statement,
    find,
    keyword_catch_all,
    leading_lines,
    parameters,
    statement,
    walk,
)

PACK = "pack"
PACKING = "packing"
SOURCES = {
    PACK: "runtime.training.packing",
    "no_cache": "runtime.training.packing",
}
IDS, EMBEDS, POSITIONS, MASK = "input_ids", "inputs_embeds", "position_ids", "attention_mask"
CACHE, USE_CACHE = "past_key_values", "use_cache"


class PackedInput:
    id = "rmpad/packed-input"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE})
    summary = "packs ids or embeddings, positions and mask into one row of valid tokens, and keeps no cache"
    why = "padding costs as much as text; from here on the batch is one row [1, T] and attention_mask says where each sequence lies"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        return past_key_values.update(x, x, self.layer_idx)

class CaseModel:
    def __init__(self, config):
        self.layers = nn.ModuleList([CaseAttention() for _ in range(2)])
    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None, **kwargs):
        for layer in self.layers:
            inputs_embeds = layer(inputs_embeds, past_key_values)
        return inputs_embeds

class CaseForCausalLM:
    def __init__(self, config):
        self.model = CaseModel(config)
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return self.model(input_ids, attention_mask)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        input_ids, _, _, attention_mask = pack(self, input_ids, None, None, attention_mask, kwargs)

        return self.model(input_ids, attention_mask)
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, tokens, attention_mask=None):
        return self.model(tokens, attention_mask)
""",
            "CaseForCausalLM.forward",
            refuses="forward(tokens, attention_mask)",
        ),
        Case(
            """
class CaseModel:
    def embed(self, input_ids, attention_mask=None, **kwargs):
        return input_ids
""",
            "CaseModel.embed",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        embeds = site.cls in site.family.embedders
        if function.name.value != "forward" or not (site.role is Role.HEAD or IDS in parameters(function)):
            return NotApplicable()
        if any(isinstance(c.func, cst.Name) and c.func.value == PACK for c in find(function.body, cst.Call)):
            return NotApplicable()
        labels = parameters(function)
        catch_all = keyword_catch_all(function)
        if not {IDS, MASK} <= set(labels) or catch_all is None:
            return site.refusal(
                self.id,
                function,
                f"forward with {IDS}, {MASK} and **kwargs",
                f"forward({', '.join(labels)})",
                "teach rules/rmpad/packed_input.py what this forward is given",
            )
        inputs = [IDS, *(name if name in labels else None for name in (EMBEDS, POSITIONS))]
        targets = ", ".join([name or "_" for name in inputs] + [MASK])
        given = ", ".join(
            [IDS, EMBEDS if EMBEDS in labels else "None", POSITIONS if POSITIONS in labels else "None", MASK]
        )
        lines = [statement(f"{targets} = {PACK}(self, {given}, {catch_all})")]
        if _rebinds(function, MASK):
            lines.append(statement(f"{PACKING} = {MASK}"))
        used = {PACK}
        if embeds and {USE_CACHE, CACHE} <= set(labels):
            lines.append(statement(f"{USE_CACHE} = no_cache({MASK}, {CACHE}, {USE_CACHE})"))
            used.add("no_cache")
        return Edits([Edit(function.body, _after_docstring(function, lines))], {name: SOURCES[name] for name in used})


def packing_name(function: cst.FunctionDef) -> str:
    """What a method calls its packing: its mask, unless it binds that name to something else on the way."""
    bound = any(
        (b := assignment(line)) is not None and code(b[0]) == PACKING for line in every_statement(function.body)
    )
    return PACKING if bound else MASK


def _rebinds(function: cst.FunctionDef, name: str) -> bool:
    """Whether an assignment anywhere in the method gives the name another value."""
    return any(
        isinstance(target, cst.Name) and target.value == name
        for assign in find(function.body, cst.Assign)
        for one in assign.targets
        for target in walk(one.target)
    )


def _after_docstring(function: cst.FunctionDef, lines: list[cst.BaseStatement]) -> cst.IndentedBlock:
    body = function.body
    assert isinstance(body, cst.IndentedBlock)
    start = 1 if function.get_docstring() is not None else 0
    rest = list(body.body[start:])
    if rest:
        # a blank line between what was added and upstream's text
        rest[0] = rest[0].with_changes(leading_lines=[cst.EmptyLine(indent=False), *leading_lines(rest[0])])
    return body.with_changes(body=[*body.body[:start], *lines, *rest])
