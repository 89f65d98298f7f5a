"""``qeff/additive-mask``: scores + mask becomes a choice by a boolean mask."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.own_bias import takes_own_bias
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, below, code, every_statement, expression, find, names, parameters, walk

MASK = "attention_mask"


class AdditiveMask:
    id = "qeff/additive-mask"
    roles = frozenset({Role.ATTENTION, Role.PART})
    summary = "fills masked scores by a boolean mask (True = hidden) instead of adding a float mask"
    why = "the mask follows from positions alone; a finite fill keeps padding rows free of NaN"
    cases = (
        Case(
            """
def eager(q, attention_mask):
    if attention_mask is not None:
        q = q + attention_mask
    return q
""",
            "eager",
            """
def eager(q, attention_mask):
    if attention_mask is not None:
        q = mask_scores(q, attention_mask)
    return q
""",
        ),
        Case(
            """
def eager(q, k, attention_mask):
    causal_mask = attention_mask[:, :, :, : k.shape[-2]]
    q += causal_mask
    return q
""",
            "eager",
            """
def eager(q, k, attention_mask):
    causal_mask = attention_mask[:, :, :, : k.shape[-2]]
    q = mask_scores(q, causal_mask)
    return q
""",
        ),
        Case(
            """
def prepare(bias, attention_mask):
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            attention_mask = torch.where(attention_mask, torch.tensor(0.0), lowest)
        bias = bias.masked_fill(attention_mask[:, :, :, : bias.shape[-1]] != 0, lowest)
    return bias
""",
            "prepare",
            """
def prepare(bias, attention_mask):
    if attention_mask is not None:
        bias = bias.masked_fill(attention_mask[:, :, :, : bias.shape[-1]], lowest)
    return bias
""",
        ),
        Case(
            """
def eager(module, q, attention_mask):
    return q + attention_mask

class CaseAttention:
    def forward(self, x, attention_mask=None, past_key_values=None):
        bias = self.own_mask(x, attention_mask)
        x, _ = past_key_values.update(x, x, self.layer_idx)
        return eager(self, x, attention_mask=bias)

    def own_mask(self, x, attention_mask):
        return x.masked_fill(attention_mask != 0, lowest)
""",
            "eager",
        ),
        Case("def eager(q, attention_mask):\n    return f(q)\n", "eager"),
        Case(
            """
def eager(q, attention_mask):
    return q.masked_fill(attention_mask < -1, 0.0)
""",
            "eager",
            refuses="attention_mask < -1",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if MASK not in parameters(function) or (not site.cls and takes_own_bias(site.module, site.where)):
            return NotApplicable()
        masks = {name for name in parameters(function) if name.endswith(MASK)}  # encoder_attention_mask adds likewise
        edits: list[Edit] = []
        known: set[int] = set()  # nodes in which a mask's name is understood
        for node in walk(function.body):
            bound = assignment(node)
            if bound is not None and isinstance(bound[0], cst.Name) and _mask_itself(bound[1], masks):
                masks.add(bound[0].value)
                known |= _ids(bound[1])
                known.add(id(bound[0]))
            elif isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Add):
                for mask, scores in ((node.right, node.left), (node.left, node.right)):
                    if _mask_itself(mask, masks) and not names(scores) & masks:
                        edits.append(Edit(node, expression("mask_scores(SCORES, MASK)", SCORES=scores, MASK=mask)))
                        known |= _ids(mask)
                        break
            elif isinstance(node, cst.AugAssign) and isinstance(node.operator, cst.AddAssign):
                if _mask_itself(node.value, masks) and isinstance(node.target, cst.Name):
                    value = expression("mask_scores(SCORES, MASK)", SCORES=node.target, MASK=node.value)
                    edits.append(Edit(node, cst.Assign(targets=[cst.AssignTarget(node.target)], value=value)))
                    known |= _ids(node.value)
            elif isinstance(node, cst.If) and _converts_boolean(node, masks):
                edits.append(Edit(node, cst.RemoveFromParent()))  # there True is shown, here it is hidden
                known |= _ids(node)
            elif isinstance(node, cst.Call) and (hidden := _hidden_by(node, masks)) is not None:
                edits.append(Edit(node.args[0].value, hidden))
                known |= _ids(node.args[0])
            elif isinstance(node, cst.Comparison) and len(node.comparisons) == 1:
                if isinstance(node.comparisons[0].operator, cst.Is | cst.IsNot):
                    known |= _ids(node)
            elif isinstance(node, cst.Arg) and isinstance(node.value, cst.Name):
                known |= _ids(node)  # handed on as it is: the callee is looked at on its own
        for line in every_statement(function.body):
            for name in _reads(line):
                if name.value in masks and id(name) not in known:
                    return site.refusal(
                        self.id,
                        name,
                        "the mask added to the scores, sliced, tested for None, or handed on",
                        f"`{_around(line, name)}`",
                        "teach rules/qeff/additive_mask.py this use of the mask",
                    )
        return Edits(edits, {"mask_scores": "runtime.qeff.masks"}) if edits else NotApplicable()


def _converts_boolean(branch: cst.If, masks: set[str]) -> bool:
    """``if mask.dtype == torch.bool:`` makes the float mask that the lines below know."""
    return branch.orelse is None and code(branch.test) in {f"{mask}.dtype == torch.bool" for mask in masks}


def _hidden_by(call: cst.Call, masks: set[str]) -> cst.BaseExpression | None:
    """``mask`` of ``x.masked_fill(mask != 0, fill)``."""
    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "masked_fill" or len(call.args) != 2:
        return None
    test = call.args[0].value
    if not isinstance(test, cst.Comparison) or len(test.comparisons) != 1 or not _mask_itself(test.left, masks):
        return None
    compared = test.comparisons[0]
    return test.left if isinstance(compared.operator, cst.NotEqual) and code(compared.comparator) == "0" else None


def _mask_itself(value: cst.BaseExpression, masks: set[str]) -> bool:
    """A mask's name, or a slice of it."""
    base = value.value if isinstance(value, cst.Subscript) else value
    return isinstance(base, cst.Name) and base.value in masks


def _ids(node: cst.CSTNode) -> set[int]:
    return {id(n) for n in walk(node)}


def _reads(line: cst.BaseStatement) -> list[cst.Name]:
    """Names of a simple line, or of the head of a compound one; its body's lines come on their own."""
    if isinstance(line, cst.SimpleStatementLine):
        return list(_bare_names(line))
    if isinstance(line, cst.If | cst.While):
        return list(_bare_names(line.test))
    return list(_bare_names(line.iter)) if isinstance(line, cst.For) else []


def _bare_names(node: cst.CSTNode) -> list[cst.Name]:
    result: list[cst.Name] = []
    stack: list[cst.CSTNode] = [node]
    while stack:
        current = stack.pop()
        if isinstance(current, cst.Name):
            result.append(current)
        elif isinstance(current, cst.Attribute | cst.Arg):
            stack.append(current.value)
        else:
            stack.extend(below(current))
    return result


def _around(line: cst.BaseStatement, name: cst.Name) -> str:
    """The smallest expression around the name that says how it is used."""
    best: cst.CSTNode = line
    for node in walk(line):
        if node is not name and isinstance(node, cst.BaseExpression) and any(n is name for n in find(node, cst.Name)):
            best = node
    return code(best)
