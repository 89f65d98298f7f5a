"""``qeff/position-default``: positions are given, never counted from what a cache has seen."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, every_statement, find, names

LENGTH = "get_seq_length"


class PositionDefault:
    id = "qeff/position-default"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE, Role.LAYER, Role.ATTENTION})
    summary = "drops positions counted from the cache's length"
    why = "a fixed buffer's length is ctx_len, not the number of tokens seen; position_ids is always an input"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, position_ids=None, past_key_values=None):
        if position_ids is None:
            seen = past_key_values.get_seq_length()
            position_ids = torch.arange(x.shape[1]) + seen
        return position_ids
""",
            "CaseModel.forward",
            """
    def forward(self, x, position_ids=None, past_key_values=None):
        return position_ids
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None):
        seen = past_key_values.get_seq_length()
        return self.embed(x, seen)
""",
            "CaseModel.forward",
            refuses="self.embed(x, seen)",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        edits = [
            Edit(line, cst.RemoveFromParent())
            for line in every_statement(function.body)
            if isinstance(line, cst.If) and _tests_missing_positions(line) and _only_binds_positions(line)
        ]
        inside = {id(n) for edit in edits for n in every_statement(edit.node)}
        counted: dict[str, cst.BaseStatement] = {}
        for line in every_statement(function.body):
            bound = assignment(line)
            if (
                id(line) not in inside
                and bound is not None
                and isinstance(bound[0], cst.Name)
                and LENGTH in code(bound[1])
            ):
                counted[bound[0].value] = line
        dead = {e.node for e in edits} | set(counted.values())
        for name, line in counted.items():
            for other in _simple_lines(function, dead):
                if name in names(other):
                    return site.refusal(
                        self.id,
                        other,
                        "nothing that depends on the cache's length but default positions",
                        f"`{code(other)}`",
                        "the length of a fixed buffer says nothing of the tokens seen; derive it from position_ids",
                    )
            edits.append(Edit(line, cst.RemoveFromParent()))
        for part in _simple_lines(function, dead):
            if LENGTH in {a.attr.value for a in find(part, cst.Attribute)} and "isinstance" not in names(part):
                return site.refusal(
                    self.id,
                    part,
                    "nothing that depends on the cache's length but default positions",
                    f"`{code(part)}`",
                    "the length of a fixed buffer says nothing of the tokens seen; derive it from position_ids",
                )
        return Edits(edits) if edits else NotApplicable()


def _tests_missing_positions(branch: cst.If) -> bool:
    return code(branch.test) == "position_ids is None"


def _only_binds_positions(branch: cst.If) -> bool:
    lines = [line for line in every_statement(branch.body) if isinstance(line, cst.SimpleStatementLine)]
    return branch.orelse is None and all(assignment(line) is not None for line in lines)


def _simple_lines(function: cst.FunctionDef, dead: set[cst.BaseStatement] | set[cst.CSTNode]) -> list[cst.CSTNode]:
    """Simple lines and heads of compound ones outside the statements that go away."""
    gone = {id(n) for node in dead for n in every_statement(node)}
    result: list[cst.CSTNode] = []
    for line in every_statement(function.body):
        if id(line) in gone:
            continue
        if isinstance(line, cst.SimpleStatementLine):
            result.append(line)
        elif isinstance(line, cst.If):
            result.append(line.test)
        elif isinstance(line, cst.For):
            result.append(line.iter)
    return result
