"""``qeff/position-default``: positions are given, never counted from what a cache has seen."""

from __future__ import annotations

from collections.abc import Mapping

import libcst as cst

from codegen.ir import Role
from codegen.recognize.calls import bound_to, callees
from codegen.recognize.carriers import bound_by_loops
from codegen.recognize.counted import Place, called_places, counted_parameters
from codegen.recognize.earlier_masks import earlier_masks, makes_masks
from codegen.recognize.lengths import Lengths
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.given_positions import ONE_ROW, POSITIONS, length_parameters, simplified
from codegen.rules.qeff.handed_position_cases import HANDED_ON
from codegen.rules.qeff.handed_positions import addresses, not_handed_on
from codegen.syntax import assignment, code, every_statement, expression, find, keyword_argument, names, walk
from codegen.upstream import Method

RESHAPES = ("unsqueeze", "squeeze", "view", "reshape", "expand", "repeat", "transpose", "permute", "flatten")
EMBEDDING = """
class CaseEmbedding(nn.Embedding):
    def forward(self, x, seen=0, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(seen, seen + x.shape[1])
        return super().forward(position_ids)

class CaseModel:
    def __init__(self, config):
        self.embed = CaseEmbedding()"""


class PositionDefault:
    id = "qeff/position-default"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE, Role.LAYER, Role.ATTENTION})
    summary = "drops positions counted from the cache's length"
    why = "a fixed buffer's length is ctx_len, not the number of tokens seen; position_ids is always an input"
    cases = (
        *HANDED_ON,
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
            EMBEDDING
            + """
    def forward(self, x, past_key_values=None):
        past = past_key_values.get_seq_length()
        position_ids = torch.arange(x.shape[1]) + past
        return self.embed(x, past)
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None):
        return self.embed(x, position_ids=position_ids)
""",
        ),
        Case(
            EMBEDDING
            + """
    def forward(self, x, past_key_values=None):
        past = past_key_values.get_seq_length()
        table = self.embed(x, past)[None, None, :, :]
        return table
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None):
        table = self.embed(x, position_ids=position_ids)[:, None, :, :]
        return table
""",
        ),
        Case(
            EMBEDDING
            + """
    def forward(self, x, past_key_values=None):
        past = past_key_values.get_seq_length()
        places = torch.arange(x.shape[1]) + past
        places = self.embed(x, past, position_ids=places)
        return x + places
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None):
        places = self.embed(x, position_ids=position_ids)
        return x + places
""",
        ),
        Case(
            EMBEDDING
            + """
    def forward(self, x, past_key_values=None):
        past = past_key_values.get_seq_length()
        places = torch.arange(x.shape[1]) + past
        if self.absolute:
            places = self.embed(x, past, position_ids=places)
        return x + places
""",
            "CaseModel.forward",
            refuses="`places = self.embed(x, past, position_ids=places)`",
        ),
        Case(
            EMBEDDING
            + """
    def forward(self, x, past_key_values=None):
        past = past_key_values.get_seq_length()
        table = self.embed(x, past)
        return x + table.unsqueeze(0)
""",
            "CaseModel.forward",
            refuses="`table = self.embed(x, past)`",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None):
        seen = past_key_values.get_seq_length()
        position_ids = torch.arange(x.shape[1]) + seen + 2
        return self.embed(position_ids)
""",
            "CaseModel.forward",
            refuses="`position_ids = torch.arange(x.shape[1]) + seen + 2`",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None):
        seen = past_key_values.get_seq_length()
        x = self.embed(x, seen)
        return self.layer(x)
""",
            "CaseModel.forward",
            refuses="`x = self.embed(x, seen)`",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None):
        seen = past_key_values.get_seq_length()
        return self.embed(x, seen)
""",
            "CaseModel.forward",
            refuses="`return self.embed(x, seen)`",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        earlier = earlier_masks(site.module, site.cls, function)
        if any(isinstance(m.call.func, cst.Attribute) for m in earlier) or makes_masks(
            site.module, Method(site.owner, function)
        ):
            return NotApplicable()  # `qeff/mask-builder` leaves nothing of it that depends on a length
        counted = counted_parameters(site.module, tuple(c.name for c in site.family.carriers))
        own = counted.get((site.cls, function.name.value), frozenset())
        edits = [
            Edit(line, cst.RemoveFromParent())
            for line in every_statement(function.body)
            if isinstance(line, cst.If) and _tests_missing(line, own | {POSITIONS}) and _only_binds(line)
        ]
        gone = {id(n) for edit in edits for n in every_statement(edit.node)}
        lengths = Lengths(positions=set(own), ignored=addresses(function) if own else set())
        lengths.ignored |= {id(arg) for m in earlier for arg in m.call.args}
        origin: dict[str, cst.BaseStatement] = {}  # where a name came to depend on a length
        numbered = False  # position_ids was counted here, in one row
        for line in every_statement(function.body):
            read = _head(line)
            if id(line) in gone or read is None:
                continue
            if own and isinstance(line, cst.If) and _only_binds_lengths(line, lengths):
                edits.append(Edit(line, cst.RemoveFromParent()))
                gone |= {id(n) for n in every_statement(line)}
                continue
            bound = assignment(line)
            target = bound[0].value if bound is not None and isinstance(bound[0], cst.Name) else ""
            if numbered and target == POSITIONS and bound is not None and POSITIONS in names(bound[1]):
                if code(bound[1]) == ONE_ROW:
                    edits.append(Edit(line, cst.RemoveFromParent()))
                    continue
                return self._refuse(site, line, read)
            if target in own and bound is not None and not lengths.is_counted(bound[1]):
                return self._refuse(site, line, read)
            if own and _hands_over_others(site, line, lengths, counted):
                return self._refuse(site, line, read)
            anew = target in lengths.names and any(line is one for one in function.body.body)
            value = bound[1] if bound is not None and anew else read
            if not lengths.read_in(value):
                lengths.forget(target)  # it is bound to something else from here on
                continue
            calls = _without_lengths(site, line, lengths)
            edits += [_with_batch_axis(line, edit) for edit in calls]
            if calls and _reshaped(function, line, calls, target):
                return self._refuse(site, line, read)
            handed = not_handed_on(site, line, lengths, counted) if lengths.positions else []
            if _overlap([*calls, *handed]):
                return self._refuse(site, line, read)
            edits += handed
            calls += handed
            first = next((origin[n] for n in sorted(names(read) & origin.keys())), line)
            if bound is not None and target == POSITIONS and not calls:
                if not lengths.is_counted(bound[1]):
                    return self._refuse(site, first, _head(first) or line)
                numbered = True
                edits.append(Edit(line, cst.RemoveFromParent()))
            elif bound is not None and target and not calls:
                lengths.bind(target, bound[1])
                if target in lengths.other:
                    origin[target] = first
                edits.append(Edit(line, cst.RemoveFromParent()))
            elif lengths.read_in(value) and "isinstance" not in names(value):
                return self._refuse(site, first, _head(first) or line)
            elif anew:
                lengths.forget(target)
        return Edits(edits) if edits else NotApplicable()

    def _refuse(self, site: Site, line: cst.BaseStatement, read: cst.CSTNode) -> Match:
        return site.refusal(
            self.id,
            line,
            "nothing that depends on the cache's length but default positions",
            f"`{code(_bare(read))}`",
            "the length of a fixed buffer says nothing of the tokens seen; derive it from position_ids",
        )


def _tests_missing(branch: cst.If, positions: frozenset[str]) -> bool:
    return code(branch.test) in {f"{name} is None" for name in positions}


def _only_binds(branch: cst.If) -> bool:
    lines = [line for line in every_statement(branch.body) if isinstance(line, cst.SimpleStatementLine)]
    return branch.orelse is None and all(assignment(line) is not None for line in lines)


def _only_binds_lengths(branch: cst.If, lengths: Lengths) -> bool:
    """``if positions is not None: seen = positions[0]``, and what else takes the cache's length from one place or
    another; the names are noted."""
    if not names(branch.test) & lengths.positions:
        return False
    lines = [line for line in every_statement(branch) if isinstance(line, cst.SimpleStatementLine)]
    bound = [assignment(line) for line in lines]
    if not all(b is not None and isinstance(b[0], cst.Name) and lengths.is_seen(b[1]) for b in bound):
        return False
    for one in bound:
        if one is not None:
            lengths.bind(code(one[0]), one[1])
    return True


def _hands_over_others(
    site: Site, line: cst.BaseStatement, lengths: Lengths, counted: Mapping[Place, frozenset[str]]
) -> bool:
    """Whether a carrier is given anything else where others give it counted positions: it reads position_ids there."""
    loops = bound_by_loops(site.function)
    carriers = tuple(c.name for c in site.family.carriers)
    for call in find(_head(line) or line, cst.Call):
        for cls, name in called_places(site.module, site.cls, call, loops, carriers):
            method = site.module.method(cls, name)
            given = bound_to(call, method.node) if method is not None else {}
            for label in counted.get((cls, name), frozenset()) & given.keys():
                if code(given[label].value) != "None" and not lengths.is_counted(given[label].value):
                    return True
    return False


def _overlap(edits: list[Edit]) -> bool:
    """Whether a node to change lies inside another one."""
    nodes = [edit.node for edit in edits]
    return any(one is not other and any(n is other for n in walk(one)) for one in nodes for other in nodes)


def _head(line: cst.BaseStatement) -> cst.CSTNode | None:
    """A simple line, or what a compound one evaluates before its body; its body's lines come on their own."""
    if isinstance(line, cst.SimpleStatementLine):
        return line
    if isinstance(line, cst.If | cst.While):
        return line.test
    return line.iter if isinstance(line, cst.For) else None


def _bare(node: cst.CSTNode) -> cst.CSTNode:
    """Without the comments above it."""
    return node.with_changes(leading_lines=[]) if isinstance(node, cst.SimpleStatementLine) else node


def _without_lengths(site: Site, line: cst.BaseStatement, lengths: Lengths) -> list[Edit]:
    """Takes lengths out of the line's calls to parts that read none once positions are given, and gives positions in
    place of counted ones."""
    if not isinstance(line, cst.SimpleStatementLine):
        return []
    loops = bound_by_loops(site.function)
    edits = []
    for call in find(line, cst.Call):
        parts = callees(site.module, site.cls, call, loops)
        forwards = [f for p in parts if (f := simplified(site.module, p)) is not None]
        if not parts or len(forwards) != len(parts) or any(site.family.carrier(p) is not None for p in parts):
            continue
        unread = [length_parameters(site.module, p) for p in parts]
        bound = [bound_to(call, f) for f in forwards]
        dropped = [
            arg
            for arg in call.args
            if isinstance(arg.value, cst.Name)
            and arg.value.value in lengths.names
            and all(any(given.get(p) is arg for p in u) for given, u in zip(bound, unread, strict=True))
        ]
        numbers = bound[0].get(POSITIONS)
        if numbers is not None and not (
            lengths.is_counted(numbers.value) and all(b.get(POSITIONS) is numbers for b in bound)
        ):
            numbers = None
        kept = [
            arg.with_changes(value=cst.Name(POSITIONS)) if arg is numbers else arg
            for arg in call.args
            if arg not in dropped
        ]
        if dropped and any(a.keyword is None for a in call.args[call.args.index(dropped[-1]) + 1 :]):
            continue  # a positional argument would move into the gap
        if not dropped and numbers is None:
            continue
        if any(POSITIONS not in given for given in bound):
            kept.append(keyword_argument(POSITIONS, POSITIONS))
        plain = [a.with_changes(comma=cst.MaybeSentinel.DEFAULT) for a in kept]
        edits.append(Edit(call, call.with_changes(args=plain)))
        lengths.ignored |= {id(arg) for arg in (*dropped, numbers) if arg is not None}
    return edits


def _with_batch_axis(line: cst.BaseStatement, edit: Edit) -> Edit:
    """``part(...)[None, None, :, :]`` adds axes for batch and heads to [seq_len, dim]; the batch is there already."""
    for subscript in find(line, cst.Subscript):
        if subscript.value is edit.node and [code(e.slice) for e in subscript.slice] == ["None", "None", ":", ":"]:
            assert isinstance(edit.new, cst.BaseExpression)
            return Edit(subscript, expression("PART[:, None, :, :]", PART=edit.new))
    return edit


def _reshaped(function: cst.FunctionDef, line: cst.BaseStatement, calls: list[Edit], target: str) -> bool:
    """Whether what a part returns for [batch, seq_len] positions is reshaped as if it were for [seq_len] ones."""
    parts = {id(edit.node) for edit in calls}
    for node in find(function.body, cst.Attribute):
        of_part = id(node.value) in parts or (target and code(node.value) == target)
        if of_part and node.attr.value in RESHAPES:
            return True
    return any(
        (id(s.value) in parts or (target and code(s.value) == target))
        and [code(e.slice) for e in s.slice] != ["None", "None", ":", ":"]
        for s in find(function.body, cst.Subscript)
    )
