"""``qeff/default-mask``: the mask of ones over all tokens, made where none is given, is one over the buffer's slots."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.calls import bound_to, callees
from codegen.recognize.carriers import bound_by_loops
from codegen.recognize.earlier_masks import masks_of_calls
from codegen.recognize.lengths import Lengths
from codegen.recognize.mask_factories import BUILDERS
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.extended_mask import METHOD
from codegen.rules.qeff.given_positions import simplified
from codegen.syntax import assignment, code, every_statement, expression, find, names, reads, replaced

FACTORIES = (*BUILDERS, METHOD)
MASK = "attention_mask"
MISSING = f"{MASK} is None"
POSITIONS_MISSING = "position_ids is None"
SLOT_MASK = "slot_mask"
SLOTS = "slot_count(past_key_values, comp_ctx_lengths)"
SOURCE = {"slot_count": "runtime.qeff.slots"}


class DefaultMask:
    id = "qeff/default-mask"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE})
    summary = "drops the default token mask, or makes it ones over the slots for what else reads it"
    why = "no mask is an input and padding is position -1; what is computed from the mask is computed for every slot"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None, past_key_values=None):
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if attention_mask is None and not is_torchdynamo_compiling():
            length = seen + x.shape[1]
            attention_mask = torch.ones(x.shape[0], length, device=x.device)
        return create_causal_mask(attention_mask=attention_mask)
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask=None, past_key_values=None):
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        return create_causal_mask(attention_mask=attention_mask)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None, past_key_values=None):
        length = x.shape[1] + past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = torch.ones((x.shape[0], length))
        else:
            attention_mask = attention_mask.to(x.device)
        bias = build_bias(attention_mask)
        attention_mask = create_causal_mask(attention_mask=attention_mask)
        return bias + attention_mask
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask=None, past_key_values=None):
        length = x.shape[1] + past_key_values.get_seq_length()
        slot_mask = torch.ones((x.shape[0], slot_count(past_key_values, comp_ctx_lengths)))
        bias = build_bias(slot_mask)
        attention_mask = create_causal_mask(attention_mask=attention_mask)
        return bias + attention_mask
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None, past_key_values=None):
        seen = past_key_values.get_seq_length()
        mask = torch.ones((x.shape[0], x.shape[1] + seen)) if attention_mask is None else attention_mask
        return build_bias(mask)
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask=None, past_key_values=None):
        seen = past_key_values.get_seq_length()
        mask = torch.ones((x.shape[0], slot_count(past_key_values, comp_ctx_lengths)))
        return build_bias(mask)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None, past_key_values=None):
        seen = past_key_values.get_seq_length()
        if attention_mask is None:
            attention_mask = torch.zeros(x.shape[0], seen)
        return create_causal_mask(attention_mask=attention_mask)
""",
            "CaseModel.forward",
            refuses="`attention_mask = torch.zeros(x.shape[0], seen)`",
        ),
        Case(
            "class CaseModel:\n    def forward(self, x, attention_mask=None):\n        return f(attention_mask)\n",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        lengths = Lengths()
        for line in every_statement(site.function.body):
            bound = assignment(line)
            if isinstance(line, cst.If) and _makes_default(line):
                inner = self._default(site, line, lengths)
                if inner is not None:
                    return inner
            elif bound is not None and isinstance(bound[0], cst.Name) and lengths.read_in(bound[1]):
                if isinstance(bound[1], cst.IfExp) and code(bound[1].test) == MISSING and code(bound[1].orelse) == MASK:
                    ones = _over_slots(bound[1].body, lengths)
                    return self._refuse(site, line) if ones is None else Edits([Edit(bound[1], ones)], SOURCE)
                lengths.bind(bound[0].value, bound[1])
        return NotApplicable()

    def _default(self, site: Site, branch: cst.If, lengths: Lengths) -> Match | None:
        """What becomes of ``if attention_mask is None: ...``; None if it does not depend on the cache's length."""
        counted = False
        value: cst.BaseExpression | None = None
        for line in every_statement(branch.body):
            bound = assignment(line)
            if bound is None or not isinstance(bound[0], cst.Name):
                return None
            if bound[0].value == MASK:
                counted, value = lengths.read_in(bound[1]), bound[1]
            elif lengths.read_in(bound[1]):
                lengths.bind(bound[0].value, bound[1])
        if not counted or value is None:
            return None
        ones = _over_slots(value, lengths)
        if ones is None or not (branch.orelse is None or _only_moves(branch.orelse)):
            return self._refuse(site, branch)
        readers = _readers(site, branch)
        if not readers:
            return Edits([Edit(branch, cst.RemoveFromParent())])
        target = cst.AssignTarget(cst.Name(SLOT_MASK))
        line = cst.SimpleStatementLine([cst.Assign([target], ones)], leading_lines=branch.leading_lines)
        return Edits([Edit(branch, line), *(Edit(reader, cst.Name(SLOT_MASK)) for reader in readers)], SOURCE)

    def _refuse(self, site: Site, line: cst.BaseStatement) -> Match:
        found = next((s for s in every_statement(line) if isinstance(s, cst.SimpleStatementLine)), line)
        return site.refusal(
            self.id,
            line,
            "a default mask of ones over the tokens seen and new: torch.ones((batch, seen + new), ...)",
            f"`{code(found.with_changes(leading_lines=[]))}`",
            "teach rules/qeff/default_mask.py what this mask says of each slot",
        )


def _makes_default(branch: cst.If) -> bool:
    """``if attention_mask is None`` or ``if attention_mask is None and ...``, binding the mask."""
    test = branch.test
    first = test.left if isinstance(test, cst.BooleanOperation) and isinstance(test.operator, cst.And) else test
    bound = [assignment(line) for line in every_statement(branch.body)]
    return code(first) == MISSING and any(b is not None and code(b[0]) == MASK for b in bound)


def _only_moves(orelse: cst.Else | cst.If) -> bool:
    """``else: attention_mask = attention_mask.to(device)``."""
    lines = list(every_statement(orelse.body)) if isinstance(orelse, cst.Else) else []
    bound = assignment(lines[0]) if len(lines) == 1 else None
    return bound is not None and code(bound[0]) == MASK and code(bound[1]).startswith(f"{MASK}.to(")


def _over_slots(value: cst.BaseExpression, lengths: Lengths) -> cst.BaseExpression | None:
    """``torch.ones((batch, seen + new), ...)`` with the number of slots in place of the number of tokens."""
    if not (isinstance(value, cst.Call) and code(value.func) == "torch.ones" and value.args):
        return None
    shape = value.args[0].value
    sizes = [e.value for e in shape.elements] if isinstance(shape, cst.Tuple) else [a.value for a in value.args[:2]]
    if len(sizes) != 2 or lengths.read_in(sizes[0]) or not lengths.is_keys(sizes[1]):
        return None
    return replaced(value, {sizes[1]: expression(SLOTS)})


def _readers(site: Site, branch: cst.If) -> list[cst.Name]:
    """Where the default mask is read after the branch, but for mask factories, parameters that a part does not read,
    defaults of positions, and tests; up to where the name is bound anew."""
    loops = bound_by_loops(site.function)
    excused: set[int] = {id(n) for n in find(branch, cst.Name)}
    for other in find(site.function.body, cst.If):
        if code(other.test) == POSITIONS_MISSING:
            excused |= {id(n) for n in find(other, cst.Name)}
    for test in find(site.function.body, cst.Comparison):
        excused |= {id(n) for n in find(test, cst.Name)}
    for made in masks_of_calls(site.module, site.cls, site.function):
        excused |= {id(n) for n in find(made.call, cst.Name)}
    for call in find(site.function.body, cst.Call):
        if code(call.func) in FACTORIES:
            excused |= {id(n) for n in find(call, cst.Name)}
        for part in callees(site.module, site.cls, call, loops):
            function = simplified(site.module, part)
            if function is not None and site.family.carrier(part) is None:
                read = names(function.body)
                excused |= {id(arg.value) for label, arg in bound_to(call, function).items() if label not in read}
    result: list[cst.Name] = []
    after = False
    for line in every_statement(site.function.body):
        after = after or line is branch
        if not after or not isinstance(line, cst.SimpleStatementLine):
            continue
        bound = assignment(line)
        result += [n for n in reads(line if bound is None else bound[1], {MASK}) if id(n) not in excused]
        if bound is not None and code(bound[0]) == MASK and id(bound[0]) not in excused:
            break
    return result
