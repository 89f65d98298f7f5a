"""``qeff/additive-mask``: scores + mask becomes a choice by a boolean mask."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.earlier_masks import earlier_masks
from codegen.recognize.mask_factories import BUILDERS
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.biased_mask import has_biased_mask
from codegen.syntax import (
    arguments,
    assignment,
    below,
    code,
    every_statement,
    expression,
    find,
    names,
    parameters,
    statements,
    walk,
    with_keywords,
)
from codegen.upstream import UpstreamModule

MASK = "attention_mask"
FILL = ("mask_scores", "runtime.qeff.masks")
BIASED_FILL = ("add_mask", "runtime.qeff.alibi")


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
        Case("def eager(q, attention_mask):\n    return f(q)\n", "eager"),
        Case(
            """
def eager(module, q, k, attention_mask):
    causal_mask = module.bias[:, : k.shape[-2]]
    q = torch.where(causal_mask, q, 0.0)
    if attention_mask is not None and attention_mask.ndim == 4:
        causal_mask = attention_mask[:, :, :, : k.shape[-2]]
        q = q + causal_mask
    return q
""",
            "eager",
            """
def eager(module, q, k, attention_mask):
    causal_mask = module.bias[:, : k.shape[-2]]
    q = torch.where(causal_mask, q, 0.0)
    if attention_mask is not None and attention_mask.ndim == 4:
        causal_mask = attention_mask[:, :, :, : k.shape[-2]]
        q = mask_scores(q, causal_mask)
    return q
""",
        ),
        Case(
            """
def eager(q, attention_mask):
    return q.masked_fill(attention_mask < -1, 0.0)
""",
            "eager",
            refuses="attention_mask < -1",
        ),
        Case(
            """
def eager(q, attention_mask):
    if attention_mask.size() != (1, 2):
        raise ValueError(attention_mask.size())
    return q.masked_fill(attention_mask, torch.finfo(q.dtype).min)
""",
            "eager",
            """
def eager(q, attention_mask):
    return mask_scores(q, attention_mask)
""",
        ),
        Case(
            """
def eager(q, attention_mask, prompt):
    prompt_mask = torch.zeros(1, prompt.size(1)).to(attention_mask.device)
    attention_mask = torch.cat([prompt_mask, attention_mask], dim=(-1))
    return q + attention_mask
""",
            "eager",
            """
def eager(q, attention_mask, prompt):
    prompt_mask = torch.zeros(1, prompt.size(1), dtype=torch.bool).to(attention_mask.device)
    attention_mask = torch.cat([prompt_mask, attention_mask], dim=(-1))
    return mask_scores(q, attention_mask)
""",
        ),
        Case(
            """
def build_bias(attention_mask):
    return attention_mask.cumsum(dim=-1)

class CaseModel:
    def forward(self, x, attention_mask=None):
        return build_bias(attention_mask), create_causal_mask(attention_mask=attention_mask)
""",
            "build_bias",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if MASK not in parameters(function) or _takes_token_mask(site):
            return NotApplicable()
        masks = {name for name in parameters(function) if name.endswith(MASK)}  # encoder_attention_mask adds likewise
        fill, source = FILL
        if has_biased_mask(site.module, site.family):
            fill, source = BIASED_FILL
        edits: list[Edit] = []
        zeros: set[str] = set()  # additive masks that hide nothing
        known: set[int] = set()  # nodes in which a mask's name is understood
        for node in walk(function.body):
            bound = assignment(node)
            if bound is not None and isinstance(bound[0], cst.Name) and _mask_itself(bound[1], masks):
                if bound[0].value not in masks:  # up to here the name was another's
                    known |= {id(name) for name in _before(function, node) if name.value == bound[0].value}
                masks.add(bound[0].value)
                known |= _ids(bound[1])
                known.add(id(bound[0]))
            elif bound is not None and (new := _zeros(bound[1], masks)) is not None:
                if "dtype" not in arguments(new):
                    edits.append(Edit(new, with_keywords(new, {"dtype": "torch.bool"})))
                known |= _ids(bound[1])
                zeros.add(code(bound[0]))
            elif bound is not None and code(bound[0]) in masks and _joins(bound[1], masks, zeros):
                known |= _ids(node)
            elif isinstance(node, cst.If) and _only_checks_size(node, masks):
                edits.append(Edit(node, cst.RemoveFromParent()))
                known |= _ids(node)
            elif isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.Add):
                for mask, scores in ((node.right, node.left), (node.left, node.right)):
                    if _mask_itself(mask, masks) and not names(scores) & masks:
                        edits.append(Edit(node, expression(f"{fill}(SCORES, MASK)", SCORES=scores, MASK=mask)))
                        known |= _ids(mask)
                        break
            elif isinstance(node, cst.AugAssign) and isinstance(node.operator, cst.AddAssign):
                if _mask_itself(node.value, masks) and isinstance(node.target, cst.Name):
                    value = expression(f"{fill}(SCORES, MASK)", SCORES=node.target, MASK=node.value)
                    edits.append(Edit(node, cst.Assign(targets=[cst.AssignTarget(node.target)], value=value)))
                    known |= _ids(node.value)
            elif isinstance(node, cst.Call) and (filled := _fills_lowest(node, masks)) is not None:
                mask = node.args[0].value
                edits.append(Edit(node, expression(f"{fill}(SCORES, MASK)", SCORES=filled, MASK=mask)))
                known |= _ids(mask)
            elif isinstance(node, cst.Call) and _fills(node, masks):
                known |= _ids(node.args[0])
            elif isinstance(node, cst.Comparison) and len(node.comparisons) == 1:
                if isinstance(node.comparisons[0].operator, cst.Is | cst.IsNot):
                    known |= _ids(node)
                elif code(node) in {f"{mask}.ndim == 4" for mask in masks}:
                    known |= _ids(node)  # a mask made here has four dimensions
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
        return Edits(edits, {fill: source}) if edits else NotApplicable()


def _takes_token_mask(site: Site) -> bool:
    """Whether a module-level function's mask is the model's own [batch, length] one: only classes that make masks of it
    call the function."""
    if site.cls:
        return False
    name, module = site.function.name.value, site.module
    callers = [
        cls
        for cls in module.classes
        if any(module.classes.mentions(owner, name) for owner in module.bases(cls))
        and any(name in names(m.node.body) for m in module.reachable_methods(cls))
    ]
    return bool(callers) and all(
        any(_makes_masks(module, cls, m.node) for m in module.reachable_methods(cls)) for cls in callers
    )


def _makes_masks(module: UpstreamModule, cls: str, function: cst.FunctionDef) -> bool:
    return bool(names(function.body) & set(BUILDERS) or earlier_masks(module, cls, function))


def _zeros(value: cst.BaseExpression, masks: set[str]) -> cst.Call | None:
    """``torch.zeros(...)`` of ``torch.zeros(...).to(mask.device)``: an additive mask that hides nothing."""
    if not (isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and value.func.attr.value == "to"):
        return None
    made = value.func.value
    if not (isinstance(made, cst.Call) and code(made.func) == "torch.zeros"):
        return None
    dtype = arguments(made).get("dtype")
    if dtype is not None and code(dtype.value) != "torch.bool":
        return None
    return made if [code(a.value) for a in value.args] in ([f"{mask}.device"] for mask in masks) else None


def _joins(value: cst.BaseExpression, masks: set[str], zeros: set[str]) -> bool:
    """``torch.cat([zeros, mask], dim=-1)``."""
    if not (isinstance(value, cst.Call) and code(value.func) == "torch.cat" and value.args):
        return False
    joined = value.args[0].value
    parts = [code(e.value) for e in joined.elements] if isinstance(joined, cst.List | cst.Tuple) else []
    return bool(parts) and all(part in masks | zeros for part in parts)


def _only_checks_size(branch: cst.If, masks: set[str]) -> bool:
    """``if mask.size() != (...): raise ...``; a mask made here has its size by construction."""
    test = branch.test
    if branch.orelse is not None or not isinstance(test, cst.Comparison) or len(test.comparisons) != 1:
        return False
    raises = [isinstance(s, cst.SimpleStatementLine) and isinstance(s.body[0], cst.Raise) for s in statements(branch)]
    return code(test.left) in {f"{mask}.size()" for mask in masks} and all(raises)


def _fills(call: cst.Call, masks: set[str]) -> bool:
    """``scores.masked_fill(mask, fill)``: such a mask is boolean, True where hidden, in upstream too."""
    func = call.func
    filling = isinstance(func, cst.Attribute) and func.attr.value == "masked_fill" and len(call.args) == 2
    return filling and _mask_itself(call.args[0].value, masks)


def _fills_lowest(call: cst.Call, masks: set[str]) -> cst.BaseExpression | None:
    """``scores`` of ``scores.masked_fill(mask, torch.finfo(...).min)``."""
    if not (_fills(call, masks) and isinstance(call.func, cst.Attribute)):
        return None
    lowest = code(call.args[1].value)
    return call.func.value if lowest.startswith("torch.finfo(") and lowest.endswith(".min") else None


def _mask_itself(value: cst.BaseExpression, masks: set[str]) -> bool:
    """A mask's name, or a slice of it."""
    base = value.value if isinstance(value, cst.Subscript) else value
    return isinstance(base, cst.Name) and base.value in masks


def _ids(node: cst.CSTNode) -> set[int]:
    return {id(n) for n in walk(node)}


def _before(function: cst.FunctionDef, line: cst.CSTNode) -> list[cst.Name]:
    """The names in the statements before one, in source order."""
    found: list[cst.Name] = []
    for each in every_statement(function.body):
        if each is line:
            break
        found += _reads(each)
    return found


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
