"""``rmpad/loss``: targets are taken inside each packed sequence."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.rmpad.packed_input import packing_name
from codegen.syntax import (
    assignment,
    code,
    dotted,
    every_statement,
    expression,
    find,
    names,
    one_line,
    parameters,
    walk,
    with_keywords,
)

LABELS = "labels"
SHIFTED = "shifted"  # targets already shifted, for a loss that would shift by itself
ALIGNED = "aligned"  # the labels of the packed tokens, for a loss that does not shift
HEADLESS = "without_first"  # the same for a loss that takes labels[..., 1:]
CHOICE = "cross_entropy_for"
SOURCE = "runtime.training.loss"


class Loss:
    id = "rmpad/loss"
    roles = frozenset({Role.HEAD})
    summary = "shifts the labels inside each sequence before they are packed"
    why = "in a packed row the next token may be another sequence's: it is no target"
    cases = (
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None, labels=None, **kwargs):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x, attention_mask=None, labels=None, **kwargs):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss = cross_entropy_for(self)(logits, labels, self.vocab_size, shift_labels=shifted(labels, attention_mask, kwargs), **kwargs)
        return Output(loss=loss, logits=logits)
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None, labels=None):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss_fct = CrossEntropyLoss()
            loss = loss_fct(logits.view(-1, self.config.vocab_size), labels.view(-1))
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x, attention_mask=None, labels=None):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            loss_fct = CrossEntropyLoss()
            loss = loss_fct(logits.view(-1, self.config.vocab_size), aligned(labels, attention_mask).view(-1))
        return Output(loss=loss, logits=logits)
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None, labels=None):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            shift_labels = labels[..., 1:].contiguous()
            loss = CrossEntropyLoss()(logits[..., :-1, :].view(-1, 9), shift_labels.view(-1))
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, x, attention_mask=None, labels=None):
        logits = self.lm_head(x)
        loss = None
        if labels is not None:
            shift_labels = without_first(labels, attention_mask)[..., 1:].contiguous()
            loss = CrossEntropyLoss()(logits[..., :-1, :].view(-1, 9), shift_labels.view(-1))
        return Output(loss=loss, logits=logits)
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None, labels=None):
        logits = self.lm_head(x)
        shift_labels = labels[..., 1:].contiguous()
        loss = self.loss_function(logits[..., :-1, :], shift_labels, self.vocab_size)
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
            refuses="after `labels[..., 1:]`",
        ),
        Case(
            """
class CaseForCausalLM:
    def forward(self, x, attention_mask=None, labels=None):
        return self.score(x, labels)
""",
            "CaseForCausalLM.forward",
            refuses="self.score(x, labels)",
        ),
        Case("class CaseForCausalLM:\n    def forward(self, x):\n        return x\n", "CaseForCausalLM.forward"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if LABELS not in parameters(function) or names(function.body) & {SHIFTED, ALIGNED, HEADLESS}:
            return NotApplicable()
        packing = packing_name(function)
        known = {id(n) for n in _harmless(function)}
        edits: list[Edit] = []
        used: set[str] = set()
        for call in find(function.body, cst.Call):
            given = [a for a in call.args if code(a.value) == LABELS]
            if given and dotted(call.func) == "self.loss_function":
                known |= {id(a.value) for a in given}
                edits.append(Edit(call, _with_targets(call, packing)))
                used |= {SHIFTED, CHOICE}
            elif _is_view_of_labels(call) and isinstance(call.func, cst.Attribute):
                label = call.func.value
                known.add(id(label))
                edits.append(Edit(label, expression(f"{ALIGNED}({LABELS}, {packing})")))
                used.add(ALIGNED)
        for subscript in find(function.body, cst.Subscript):
            if one_line(subscript) == f"{LABELS}[..., 1:]":
                twice = [c for c in find(function.body, cst.Call) if dotted(c.func) == "self.loss_function"]
                if twice:
                    return site.refusal(
                        self.id,
                        twice[0],
                        "labels shifted once, by the head or by its loss function",
                        f"`{code(twice[0])}` after `{code(subscript)}`",
                        "upstream's own loss is of the token after the next one",
                    )
                known.add(id(subscript.value))
                edits.append(Edit(subscript.value, expression(f"{HEADLESS}({LABELS}, {packing})")))
                used.add(HEADLESS)
        for name in find(function.body, cst.Name):
            if name.value == LABELS and id(name) not in known:
                around = next((c for c in find(function.body, cst.Call) if any(n is name for n in walk(c))), None)
                return site.refusal(
                    self.id,
                    name,
                    "self.loss_function(logits, labels, ...), or a loss over labels.view(-1)",
                    f"`{code(around if around is not None else name)}`",
                    "teach rules/rmpad/loss.py this use of the labels",
                )
        return Edits(edits, dict.fromkeys(sorted(used), SOURCE)) if edits else NotApplicable()


def _harmless(function: cst.FunctionDef) -> list[cst.Name]:
    """``labels`` in ``labels is not None``, in ``labels = labels.to(device)``, and as the label of a keyword."""
    result: list[cst.Name] = []
    for comparison in find(function.body, cst.Comparison):
        if code(comparison.comparisons[0].comparator) == "None" and isinstance(comparison.left, cst.Name):
            result.append(comparison.left)
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is not None and code(bound[0]) == LABELS and code(bound[1]).startswith(f"{LABELS}.to("):
            result += [n for n in find(line, cst.Name) if n.value == LABELS]
    result += [a.keyword for a in find(function.body, cst.Arg) if a.keyword is not None]
    return result


def _with_targets(call: cst.Call, packing: str) -> cst.Call:
    """The call with the targets among its keywords. Those that a caller passes in ``**kwargs`` are taken out of there
    first: keywords are evaluated in order."""
    rest = next((code(a.value) for a in call.args if a.star == "**"), None)
    given = f", {rest}" if rest is not None else ""
    chosen = call.with_changes(func=expression(f"{CHOICE}(self)"))
    return with_keywords(chosen, {"shift_labels": f"{SHIFTED}({LABELS}, {packing}{given})"})


def _is_view_of_labels(call: cst.Call) -> bool:
    return code(call) == f"{LABELS}.view(-1)"
