"""``qeff/counted-positions``: an attention that counts its tokens from the cache's length takes their positions."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.counted import counted_parameters
from codegen.recognize.lengths import LENGTH
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, dotted, every_statement, expression, find, names

ELEMENTWISE = frozenset(
    {"float", "torch.floor", "torch.log", "torch.log1p", "torch.exp", "torch.sqrt", "torch.pow", "torch.clamp"}
)


class CountedPositions:
    id = "qeff/counted-positions"
    roles = frozenset({Role.ATTENTION})
    summary = "computes factors of the queries from position_ids, one row of them for each row of the batch"
    why = "a fixed buffer's length is ctx_len, not the number of tokens seen, and rows need not be equally long"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        input_shape = x.shape[:-1]
        if self.tuning:
            seen = past_key_values.get_seq_length(self.layer_idx) if past_key_values is not None else 0
            positions = torch.arange(x.shape[1], device=x.device) + seen
            scales = torch.log1p(torch.floor((positions.float() + 1.0) / self.floor)) * self.scale + 1.0
            scales = scales.view((1, input_shape[-1], 1, 1)).expand((*input_shape, 1, 1))
            x = x * scales
        return past_key_values.update(x, x, self.layer_idx)
""",
            "CaseAttention.forward",
            """
    def forward(self, x, past_key_values=None):
        input_shape = x.shape[:-1]
        if self.tuning:
            scales = torch.log1p(torch.floor((position_ids.float() + 1.0) / self.floor)) * self.scale + 1.0
            scales = scales.view((*input_shape, 1, 1))
            x = x * scales
        return past_key_values.update(x, x, self.layer_idx)
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None, cache_position=None):
        input_shape = x.shape[:-1]
        if self.tuning:
            scales = torch.log1p(torch.floor((cache_position.float() + 1.0) / self.floor)) * self.scale + 1.0
            scales = scales.view((1, input_shape[-1], 1, 1)).expand((*input_shape, 1, 1))
            x = x * scales
        return past_key_values.update(x, x, self.layer_idx, {"cache_position": cache_position})

class CaseModel:
    def __init__(self, config):
        self.layers = nn.ModuleList([CaseAttention()])
    def forward(self, x, past_key_values=None, cache_position=None):
        if cache_position is None:
            seen = past_key_values.get_seq_length()
            cache_position = torch.arange(seen, seen + x.shape[1])
        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
        return x
""",
            "CaseAttention.forward",
            """
    def forward(self, x, past_key_values=None, cache_position=None):
        input_shape = x.shape[:-1]
        if self.tuning:
            scales = torch.log1p(torch.floor((position_ids.float() + 1.0) / self.floor)) * self.scale + 1.0
            scales = scales.view((*input_shape, 1, 1))
            x = x * scales
        return past_key_values.update(x, x, self.layer_idx, {"cache_position": cache_position})
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        seen = past_key_values.get_seq_length()
        positions = torch.arange(x.shape[1]) + seen
        bias = positions[None] - positions[:, None]
        return past_key_values.update(x + bias, x, self.layer_idx)
""",
            "CaseAttention.forward",
            refuses="`bias = positions[None] - positions[:, None]`",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        return past_key_values.update(x, x, self.layer_idx)
""",
            "CaseAttention.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        lines = [s for s in every_statement(site.function.body) if isinstance(s, cst.SimpleStatementLine)]
        seen: dict[str, cst.BaseStatement] = {}
        counted: dict[str, cst.BaseStatement] = {}
        given = self._given(site, lines)
        for line in lines:
            bound = assignment(line)
            if bound is None or not isinstance(bound[0], cst.Name):
                continue
            if any(a.attr.value == LENGTH for a in find(bound[1], cst.Attribute)):
                seen[bound[0].value] = line
            elif _counts_on(bound[1], set(seen)):
                counted[bound[0].value] = line
        if not counted and not given:
            return NotApplicable()
        edits = [Edit(line, cst.RemoveFromParent()) for line in (*seen.values(), *counted.values())]
        gone = {id(e.node) for e in edits}
        flat = set(counted) | given  # names that hold one number for each token of the call
        for line in lines:
            bound = assignment(line)
            if id(line) in gone or not names(line) & (flat | set(seen)):
                continue
            if given and (
                bound is None or (not names(bound[1]) & (flat - given | set(seen)) and not _computes(line, given))
            ):
                continue  # handed on, which another rule sees to
            if bound is None or not isinstance(bound[0], cst.Name):
                return self._refuse(site, line)
            spread = _spread(bound[1], flat)
            if spread is not None:
                edits.append(Edit(bound[1], spread))
                flat.discard(bound[0].value)
            elif _is_elementwise(bound[1]):
                flat.add(bound[0].value)
                edits += [
                    Edit(n, cst.Name("position_ids")) for n in find(bound[1], cst.Name) if n.value in (*counted, *given)
                ]
            else:
                return self._refuse(site, line)
        return Edits(edits)

    def _given(self, site: Site, lines: list[cst.SimpleStatementLine]) -> set[str]:
        """Parameters that hold positions which were counted above, where the method computes with them."""
        carriers = tuple(c.name for c in site.family.carriers)
        own = counted_parameters(site.module, carriers).get((site.cls, site.function.name.value), frozenset())
        return {name for name in own if any(_computes(line, {name}) for line in lines)}

    def _refuse(self, site: Site, line: cst.BaseStatement) -> Match:
        return site.refusal(
            self.id,
            line,
            "arithmetic on torch.arange(length) + seen, then .view((1, length, 1, 1)).expand((*input_shape, 1, 1))",
            f"`{code(line)}`",
            "teach rules/qeff/counted_positions.py this use of the positions",
        )


def _counts_on(value: cst.BaseExpression, seen: set[str]) -> bool:
    """``torch.arange(length, ...) + seen``."""
    return (
        isinstance(value, cst.BinaryOperation)
        and isinstance(value.operator, cst.Add)
        and isinstance(value.left, cst.Call)
        and dotted(value.left.func) == "torch.arange"
        and isinstance(value.right, cst.Name)
        and value.right.value in seen
    )


def _computes(line: cst.SimpleStatementLine, numbers: set[str]) -> bool:
    """Whether a line binds a name to arithmetic on some of the numbers."""
    bound = assignment(line)
    return (
        bound is not None
        and isinstance(bound[0], cst.Name)
        and isinstance(bound[1], cst.BinaryOperation | cst.Call)
        and bool(names(bound[1]) & numbers)
        and _is_elementwise(bound[1])
    )


def _is_elementwise(value: cst.BaseExpression) -> bool:
    """Whether a value is arithmetic that takes numbers one by one, whatever their shape."""
    called = {code(c.func) if dotted(c.func) in ELEMENTWISE else _method(c) for c in find(value, cst.Call)}
    return called <= ELEMENTWISE and not any(find(value, cst.Subscript))


def _method(call: cst.Call) -> str:
    return call.func.attr.value if isinstance(call.func, cst.Attribute) else code(call.func)


def _spread(value: cst.BaseExpression, flat: set[str]) -> cst.BaseExpression | None:
    """``x.view((*shape, 1, 1))`` for ``x.view((1, length, 1, 1)).expand((*shape, 1, 1))``: x had one dimension and has
    two."""
    if not isinstance(value, cst.Call) or not isinstance(value.func, cst.Attribute) or _method(value) != "expand":
        return None
    view = value.func.value
    if not isinstance(view, cst.Call) or not isinstance(view.func, cst.Attribute) or _method(view) != "view":
        return None
    shapes = [a.value for call in (view, value) for a in call.args]
    base = view.func.value
    if len(shapes) != 2 or not isinstance(base, cst.Name) or base.value not in flat:
        return None
    old, new = shapes
    if not isinstance(old, cst.Tuple) or not isinstance(new, cst.Tuple):
        return None
    sizes = [code(e.value) for e in old.elements]
    starred = new.elements[0] if new.elements else None
    tail = [code(e.value) for e in new.elements[1:]]
    if not isinstance(starred, cst.StarredElement) or sizes != ["1", f"{code(starred.value)}[-1]", *tail]:
        return None
    return expression("BASE.view(SHAPE)", BASE=base, SHAPE=new)
