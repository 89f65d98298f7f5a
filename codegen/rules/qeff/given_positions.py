"""``qeff/given-positions``: a part that may count positions itself uses the ones it is given."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.calls import bound_to, calls_of
from codegen.recognize.lengths import lengths_of
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site, rewrite
from codegen.rules.qeff.grown_table import grown_tables
from codegen.rules.qeff.padding_positions import padding_positions
from codegen.syntax import assignment, code, every_statement, find, names, parameters
from codegen.upstream import UpstreamModule

POSITIONS = "position_ids"
MISSING = f"{POSITIONS} is None"
ONE_ROW = f"{POSITIONS}.unsqueeze(0)"


class GivenPositions:
    id = "qeff/given-positions"
    roles = frozenset({Role.PART})
    summary = "drops positions that a part would count from the cache's length, the row it adds to 1-D ones, and writes to them"
    why = "position_ids [batch, seq_len] is always an input; nothing is counted from a fixed buffer"
    cases = (
        Case(
            """
class CaseEmbedding(nn.Embedding):
    def forward(self, input_ids, seen=0, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(seen, seen + input_ids.shape[1])
        else:
            position_ids = position_ids.unsqueeze(0)
        return super().forward(position_ids + self.offset)

class CaseModel:
    def __init__(self, config):
        self.embed = CaseEmbedding()
    def forward(self, input_ids, position_ids=None):
        return self.embed(input_ids, position_ids=position_ids)
""",
            "CaseEmbedding.forward",
            """
    def forward(self, input_ids, seen=0, position_ids=None):
        return super().forward(position_ids + self.offset)
""",
        ),
        Case(
            """
class CaseEmbedding(nn.Embedding):
    def forward(self, position_ids=None):
        position_ids += self.offset
        return super().forward(position_ids)
""",
            "CaseEmbedding.forward",
            """
    def forward(self, position_ids=None):
        position_ids = position_ids + self.offset
        return super().forward(position_ids)
""",
        ),
        Case(
            """
class CaseEmbedding(nn.Embedding):
    def forward(self, input_ids, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])
        return super().forward(position_ids)

class CaseModel:
    def __init__(self, config):
        self.embed = CaseEmbedding()
    def forward(self, input_ids, position_ids=None):
        return self.embed(input_ids)
""",
            "CaseEmbedding.forward",
            refuses="`self.embed(input_ids)`",
        ),
        Case(
            "class CaseEmbedding:\n    def forward(self, x, position_ids):\n        return self.table[position_ids]\n",
            "CaseEmbedding.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if not site.cls or function.name.value != "forward" or POSITIONS not in parameters(function):
            return NotApplicable()
        edits = given_positions(function)
        if not edits:
            return NotApplicable()
        for _, method, call in calls_of(site.module, site.family.reachable, site.cls):
            given = bound_to(call, site.function)
            counted = any(lengths_of(method.node).read_in(arg) for arg in given.values())
            if POSITIONS not in given and not counted:
                return site.refusal(
                    self.id,
                    function,
                    "position_ids, or the length of the cache to count them from, in every call",
                    f"`{code(call)}` in {method.owner}.{method.name}",
                    "the positions of this call would start at 0 whatever was seen; teach rules/qeff/given_positions.py",
                )
        return Edits(edits)


def given_positions(function: cst.FunctionDef) -> list[Edit]:
    """The branches for missing positions, gone or replaced by what is done to given ones."""
    edits: list[Edit] = []
    for line in every_statement(function.body):
        if not isinstance(line, cst.If) or code(line.test) != MISSING:
            continue
        if line.orelse is None:
            edits.append(Edit(line, cst.RemoveFromParent()))
        elif isinstance(line.orelse, cst.If):
            edits.append(Edit(line, line.orelse))
        else:
            kept = [s for s in line.orelse.body.body if not _adds_row(s)]
            new = cst.FlattenSentinel([s for s in kept if isinstance(s, cst.BaseStatement)])
            edits.append(Edit(line, new if kept else cst.RemoveFromParent()))
    return [*edits, *_out_of_place(function)]


def _out_of_place(function: cst.FunctionDef) -> list[Edit]:
    """``position_ids += x`` would move the cache's address, which is the same tensor."""
    edits = []
    for line in find(function.body, cst.AugAssign):
        if code(line.target) == POSITIONS and isinstance(line.operator, cst.AddAssign):
            total = cst.BinaryOperation(cst.Name(POSITIONS), cst.Add(), line.value)
            edits.append(Edit(line, cst.Assign([cst.AssignTarget(cst.Name(POSITIONS))], total)))
    return edits


def simplified(module: UpstreamModule, cls: str) -> cst.FunctionDef | None:
    """The forward of a part as the rules for parts leave it, None for a class without one."""
    method = module.method(cls, "forward")
    if method is None:
        return None
    function = method.node
    for change in (grown_tables, lambda f: padding_positions(module, cls, f), given_positions):
        function = rewrite(function, Edits(change(function)))
    return function


def length_parameters(module: UpstreamModule, cls: str) -> frozenset[str]:
    """Parameters of a part's forward that it no longer reads once positions are given."""
    before, after = module.method(cls, "forward"), simplified(module, cls)
    if before is None or after is None:
        return frozenset()
    return frozenset(p for p in parameters(after) if p in names(before.node.body) and p not in names(after.body))


def _adds_row(line: cst.CSTNode) -> bool:
    bound = assignment(line)
    return bound is not None and code(bound[0]) == POSITIONS and code(bound[1]) == ONE_ROW
