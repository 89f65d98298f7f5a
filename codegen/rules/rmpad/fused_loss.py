"""``rmpad/fused-loss``: projection and cross entropy in one kernel, where the head's logits are no more than that."""

from __future__ import annotations

from dataclasses import dataclass, field

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.rmpad.packed_input import packing_name
from codegen.syntax import (
    assignment,
    code,
    dotted,
    keyword_catch_all,
    leading_lines,
    names,
    one_line,
    self_attribute,
    statement,
    statements,
)

FUSED = "fused_loss"
LABELS = "labels"


@dataclass
class _Logits:
    """What a head does between its projection and its loss."""

    name: str
    projection: str
    hidden: str
    indices: str
    scale: str | None = None
    softcap: str | None = None
    lines: list[cst.BaseStatement] = field(default_factory=list)


class FusedLoss:
    id = "rmpad/fused-loss"
    roles = frozenset({Role.HEAD})
    summary = "computes logits only where the loss is not fused with the output projection"
    why = "logits of all tokens are the largest tensor of a step, and the loss needs them one block at a time"
    cases = (
        Case(
            """
class CaseForCausalLM:
    def __init__(self, config):
        self.lm_head = nn.Linear(4, 5)
    def forward(self, hidden_states, attention_mask=None, labels=None, logits_to_keep=0, **kwargs):
        slice_indices = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden_states[:, slice_indices, :])
        logits = logits / self.config.logits_scaling
        loss = None
        if labels is not None:
            loss = cross_entropy_for(self)(logits, labels, self.vocab_size, shift_labels=shifted(labels, attention_mask, kwargs), **kwargs)
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
            """
    def forward(self, hidden_states, attention_mask=None, labels=None, logits_to_keep=0, **kwargs):
        loss = fused_loss(self, self.lm_head, hidden_states, labels, attention_mask, scale=1 / self.config.logits_scaling, **kwargs)
        logits = None
        if loss is None:
            slice_indices = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, slice_indices, :])
            logits = logits / self.config.logits_scaling
            if labels is not None:
                loss = cross_entropy_for(self)(logits, labels, self.vocab_size, shift_labels=shifted(labels, attention_mask, kwargs), **kwargs)
        return Output(loss=loss, logits=logits)
""",
        ),
        Case(
            """
class CaseForCausalLM:
    def __init__(self, config):
        self.lm_head = CasePredictions(4, 5)
    def forward(self, hidden_states, labels=None, logits_to_keep=0, **kwargs):
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        return Output(loss=loss, logits=logits)
""",
            "CaseForCausalLM.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        catch_all = keyword_catch_all(function)
        if FUSED in names(function.body) or catch_all is None or not isinstance(function.body, cst.IndentedBlock):
            return NotApplicable()
        lines = statements(function)
        start = next((i for i, line in enumerate(lines) if self._logits(site, line) is not None), None)
        if start is None:
            return NotApplicable()
        logits = self._logits(site, lines[start])
        assert logits is not None
        before = [lines[start - 1]] if start and code_of_target(lines[start - 1]) == logits.indices else []
        logits.lines = [*before, lines[start]]
        position = start + 1
        while position < len(lines) and _reads_as(logits, lines[position]):
            logits.lines.append(lines[position])
            position += 1
        loss = _started(lines[position]) if position < len(lines) else None
        branch = lines[position + 1] if position + 1 < len(lines) else None
        if loss is None or not isinstance(branch, cst.If) or not _is_shifted_loss(branch, logits.name, loss):
            return NotApplicable()  # what lies between projection and loss is not a scale or a soft-cap
        new = _fused(logits, loss, branch, packing_name(function), catch_all)
        gone = {id(line) for line in [*logits.lines, lines[position], branch]}
        body: list[cst.BaseStatement] = []
        for line in function.body.body:
            if line is (logits.lines[0]):
                body += new
            elif id(line) not in gone:
                assert isinstance(line, cst.BaseStatement)
                body.append(line)
        return Edits(
            [Edit(function.body, function.body.with_changes(body=body))], {FUSED: "runtime.training.kernels.loss"}
        )

    def _logits(self, site: Site, line: cst.BaseStatement) -> _Logits | None:
        """``logits = self.<projection>(hidden_states[:, slice_indices, :])`` with an ``nn.Linear`` of the head."""
        bound = assignment(line)
        if bound is None or not isinstance(bound[0], cst.Name) or not isinstance(bound[1], cst.Call):
            return None
        call = bound[1]
        attribute = self_attribute(call.func)
        built = site.module.attributes(site.cls).get(attribute) if attribute is not None else None
        if attribute is None or not isinstance(built, cst.Call) or dotted(built.func) != "nn.Linear":
            return None
        if len(call.args) != 1 or not isinstance(call.args[0].value, cst.Subscript):
            return None
        hidden = call.args[0].value.value
        whole, *indices = [code(e.slice) for e in call.args[0].value.slice]
        if not isinstance(hidden, cst.Name) or whole != ":" or not indices or indices[1:] not in ([":"], []):
            return None
        if not indices[0].isidentifier():
            return None
        return _Logits(bound[0].value, f"self.{attribute}", hidden.value, indices[0])


def code_of_target(line: cst.BaseStatement) -> str:
    bound = assignment(line)
    return code(bound[0]) if bound is not None else ""


def _reads_as(logits: _Logits, line: cst.BaseStatement) -> bool:
    """Notes a scale or a soft-cap of the logits; False for any other statement."""
    bound = assignment(line)
    if bound is not None and code(bound[0]) == logits.name and isinstance(bound[1], cst.BinaryOperation):
        operation = bound[1]
        if code(operation.left) != logits.name or logits.scale is not None or logits.softcap is not None:
            return False
        if isinstance(operation.operator, cst.Divide) and dotted(operation.right) is not None:
            logits.scale = f"1 / {code(operation.right)}"
            return True
        if isinstance(operation.operator, cst.Multiply) and dotted(operation.right) is not None:
            logits.scale = code(operation.right)
            return True
        return False
    if isinstance(line, cst.If) and line.orelse is None and logits.softcap is None:
        comparison = line.test
        if isinstance(comparison, cst.Comparison) and code(comparison.comparisons[0]).strip() == "is not None":
            cap, name = code(comparison.left), logits.name
            wanted = [f"{name} = {name} / {cap}", f"{name} = torch.tanh({name})", f"{name} = {name} * {cap}"]
            if [one_line(s) for s in statements(line)] == wanted:
                logits.softcap = cap
                return True
    return False


def _started(line: cst.BaseStatement) -> str | None:
    """The name in ``loss = None``."""
    bound = assignment(line)
    return code(bound[0]) if bound is not None and code(bound[1]) == "None" else None


def _is_shifted_loss(branch: cst.If, logits: str, loss: str) -> bool:
    """``if labels is not None: loss = <loss that is given the packing>(logits, labels, ...)``."""
    lines = statements(branch)
    bound = assignment(lines[-1]) if lines else None
    return (
        branch.orelse is None
        and code(branch.test) == f"{LABELS} is not None"
        and len(lines) == 1
        and bound is not None
        and code(bound[0]) == loss
        and isinstance(bound[1], cst.Call)
        and code(bound[1].func) == "cross_entropy_for(self)"
        and logits in names(bound[1])
    )


def _fused(logits: _Logits, loss: str, branch: cst.If, packing: str, catch_all: str) -> list[cst.BaseStatement]:
    extra = [f"{k}={v}" for k, v in (("scale", logits.scale), ("softcap", logits.softcap)) if v is not None]
    arguments = ", ".join(["self", logits.projection, logits.hidden, LABELS, packing, *extra, f"**{catch_all}"])
    first = statement(f"{loss} = {FUSED}({arguments})").with_changes(leading_lines=leading_lines(logits.lines[0]))
    plain = statement(f"if {loss} is None:\n    pass")
    assert isinstance(plain, cst.If)
    inner = [logits.lines[0].with_changes(leading_lines=[]), *logits.lines[1:], branch.with_changes(leading_lines=[])]
    plain = plain.with_changes(body=cst.IndentedBlock(body=inner))
    return [first, statement(f"{logits.name} = None"), plain]
