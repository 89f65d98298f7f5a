"""``qeff/position-embedding``: a table of positions is looked up with padding sent to row 0."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, every_statement, expression, find, reads, self_attribute

POSITIONS = "position_ids"
TABLES = ("nn.Embedding", "Embedding", "torch.nn.Embedding")
GATHERS = {"torch.gather": (2, "index"), "torch.index_select": (2, "index"), "nn.functional.embedding": (0, "input")}
GATHERS |= {"F.embedding": GATHERS["nn.functional.embedding"]}
GATHER_METHODS = {"gather": (1, "index"), "index_select": (1, "index")}


class PositionEmbedding:
    id = "qeff/position-embedding"
    roles = frozenset({Role.WRAPPER, Role.BACKBONE, Role.LAYER, Role.ATTENTION, Role.PART})
    summary = "looks positions up in tables with padding (-1) clamped to row 0"
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
            """
class CaseEmbedding(nn.Embedding):
    def forward(self, position_ids):
        return super().forward(position_ids + self.offset)
""",
            "CaseEmbedding.forward",
            """
    def forward(self, position_ids):
        return super().forward(position_ids.clamp(min=0) + self.offset)
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, position_ids):
        rows = position_ids.unsqueeze(-1).repeat(1, 1, self.table.shape[-1])
        return torch.gather(self.table, 1, rows) + self.table[position_ids]
""",
            "CaseAttention.forward",
            """
    def forward(self, position_ids):
        rows = position_ids.unsqueeze(-1).repeat(1, 1, self.table.shape[-1])
        return torch.gather(self.table, 1, rows.clamp(min=0)) + self.table[position_ids.clamp(min=0)]
""",
        ),
        Case(
            "class CaseModel:\n    def forward(self, x, position_ids):\n        return self.rotary(x, position_ids)\n",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        derived = _derived(function)
        lookups = [index for call in find(function.body, cst.Call) for index in _looked_up(site, call)]
        for subscript in find(function.body, cst.Subscript):
            element = subscript.slice[0].slice
            if len(subscript.slice) == 1 and isinstance(element, cst.Index) and isinstance(element.value, cst.Name):
                lookups.append(element.value)
        edits: dict[int, Edit] = {}
        for index in lookups:
            for name in _unclamped(index, derived):
                edits[id(name)] = Edit(name, expression(f"{name.value}.clamp(min=0)"))
        return Edits(list(edits.values())) if edits else NotApplicable()


def _derived(function: cst.FunctionDef) -> set[str]:
    """Names that hold positions, as they are or in another shape: ``rows = position_ids.unsqueeze(-1)``."""
    result = {POSITIONS}
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name) and isinstance(bound[1], cst.Call):
            base: cst.BaseExpression = bound[1]
            while isinstance(base, cst.Call) and isinstance(base.func, cst.Attribute):
                base = base.func.value
            if isinstance(base, cst.Name) and base.value in result:
                result.add(bound[0].value)
    return result


def _looked_up(site: Site, call: cst.Call) -> list[cst.BaseExpression]:
    """The expressions that a call uses as row numbers of a table."""
    label = code(call.func)
    if label in GATHERS:
        return _argument(call, *GATHERS[label])
    if isinstance(call.func, cst.Attribute) and call.func.attr.value in GATHER_METHODS:
        return _argument(call, *GATHER_METHODS[call.func.attr.value])
    if label.startswith("super(") and label.endswith(").forward"):
        return [a.value for a in call.args] if set(site.module.external_bases(site.cls)) & set(TABLES) else []
    attribute = self_attribute(call.func)
    value = site.module.attributes(site.cls).get(attribute) if attribute is not None else None
    if isinstance(value, cst.Call) and code(value.func) in TABLES:
        return [a.value for a in call.args]
    return []


def _argument(call: cst.Call, place: int, label: str) -> list[cst.BaseExpression]:
    for index, arg in enumerate(call.args):
        if (arg.keyword is None and index == place) or (arg.keyword is not None and arg.keyword.value == label):
            return [arg.value]
    return []


def _unclamped(index: cst.BaseExpression, wanted: set[str]) -> list[cst.Name]:
    """Reads of the names in an index, but for those that are clamped already."""
    clamped = {
        id(n)
        for call in find(index, cst.Call)
        if isinstance(call.func, cst.Attribute) and call.func.attr.value == "clamp"
        for n in find(call.func.value, cst.Name)
    }
    return [name for name in reads(index, wanted) if id(name) not in clamped]
