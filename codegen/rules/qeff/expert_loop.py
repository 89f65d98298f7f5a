"""``qeff/expert-loop``: the loop over experts that were hit becomes one batch of (token, choice) pairs."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, dotted, expression, find, names, replaced, self_attribute, statement

SOURCE = "runtime.qeff.experts"
LINEAR = ("nn.functional.linear", "torch.nn.functional.linear", "F.linear")


class ExpertLoop:
    id = "qeff/expert-loop"
    roles = frozenset({Role.PART})
    summary = "gathers the chosen experts' weights and runs every (token, choice) pair in one batch"
    why = "a loop over the experts that happen to be hit depends on the data and cannot be traced"
    cases = (
        Case(
            """
class CaseExperts:
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        with torch.no_grad():
            expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts)
            expert_mask = expert_mask.permute(2, 1, 0)
            expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            expert_idx = expert_idx[0]
            if expert_idx == self.num_experts:
                continue
            top_k_pos, token_idx = torch.where(expert_mask[expert_idx])
            current_state = hidden_states[token_idx]
            current = nn.functional.linear(current_state, self.up_proj[expert_idx])
            current = current @ self.down_proj[expert_idx] + self.down_bias[expert_idx]
            current = current * top_k_weights[token_idx, top_k_pos, None]
            final_hidden_states.index_add_(0, token_idx, current.to(final_hidden_states.dtype))
        return final_hidden_states
""",
            "CaseExperts.forward",
            """
    def forward(self, hidden_states, top_k_index, top_k_weights):
        expert_idx = top_k_index.reshape(-1)
        current_state = routed_tokens(hidden_states, top_k_index)
        current = expert_linear(current_state, self.up_proj[expert_idx])
        current = expert_matmul(current, self.down_proj[expert_idx]) + self.down_bias[expert_idx]
        current = current * top_k_weights.reshape(-1, 1)
        final_hidden_states = sum_over_choices(current.to(hidden_states.dtype), top_k_index)
        return final_hidden_states
""",
        ),
        Case(
            """
class CaseExperts:
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            pos, token_idx = torch.where(expert_mask[expert_idx])
            if expert_idx > self.num_real:
                current = self.identity(hidden_states[token_idx])
            else:
                current = nn.functional.linear(hidden_states[token_idx], self.up_proj[expert_idx])
            final_hidden_states.index_add_(0, token_idx, current * top_k_weights[token_idx, pos, None])
        return final_hidden_states
""",
            "CaseExperts.forward",
            refuses="expert_idx > self.num_real",
        ),
        Case("class CaseMLP:\n    def forward(self, x):\n        return self.down(x)\n", "CaseMLP.forward"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if not isinstance(function.body, cst.IndentedBlock):
            return NotApplicable()
        top = list(function.body.body)
        loop = next((s for s in top if isinstance(s, cst.For) and "index_add_" in _calls(s)), None)
        if loop is None or not isinstance(loop.target, cst.Name):
            return NotApplicable()
        hot = next((c for c in find(function.body, cst.Call) if (dotted(c.func) or "").endswith("one_hot")), None)
        if hot is None or not isinstance(hot.args[0].value, cst.Name):
            return self._refuse(site, function, "no one_hot(top_k_index, ...) before the loop")
        index = hot.args[0].value.value
        plan = _Plan(index=index, expert=loop.target.value)
        new_lines: list[cst.BaseStatement] = [statement(f"{plan.expert} = {index}.reshape(-1)")]
        for line in loop.body.body:
            if not isinstance(line, cst.BaseStatement):
                continue
            problem = plan.take(line, new_lines)
            if problem is not None:
                return self._refuse(site, line, problem)
        if plan.output is None:
            return self._refuse(site, loop, "no index_add_ at the end of the loop")
        edits: list[Edit] = []
        for line in top:
            bound = assignment(line)
            if isinstance(line, cst.With) and _only_finds_hits(line, plan):
                edits.append(Edit(line, cst.RemoveFromParent()))
            elif bound is not None and isinstance(bound[0], cst.Name):
                if bound[0].value == plan.output or _finds_hits(bound[1], plan) or "one_hot" in _calls(line):
                    edits.append(Edit(line, cst.RemoveFromParent()))
                    plan.found.add(bound[0].value)
            elif isinstance(line, cst.If) and _stops_when_empty(line, plan):
                edits.append(Edit(line, cst.RemoveFromParent()))
        edits.append(Edit(loop, cst.FlattenSentinel(new_lines)))
        used = {"routed_tokens", "sum_over_choices", *plan.used}
        return Edits(edits, dict.fromkeys(sorted(used), SOURCE))

    def _refuse(self, site: Site, node: cst.CSTNode, found: str) -> Match:
        return site.refusal(
            self.id,
            node,
            "a loop over hit experts that gathers tokens, applies weights[expert], and adds back",
            found,
            "teach rules/qeff/expert_loop.py this step, or refuse the family",
        )


class _Plan:
    """What the loop's names mean, and its lines rewritten one by one."""

    def __init__(self, index: str, expert: str) -> None:
        self.index = index
        self.expert = expert
        self.position: str | None = None
        self.token: str | None = None
        self.output: str | None = None
        self.hidden: str | None = None
        self.used: set[str] = set()
        self.found: set[str] = {"expert_mask", "expert_hit"}

    def take(self, line: cst.BaseStatement, out: list[cst.BaseStatement]) -> str | None:
        """Appends the rewritten line; returns what is wrong with it, if anything."""
        bound = assignment(line)
        if isinstance(line, cst.If):
            if _only_continues(line):
                return None  # skips an expert nobody chose, or the sentinel of padding: the batch holds neither
            return f"`{code(line.test)}`"
        if isinstance(line, cst.With):
            for inner in line.body.body:
                problem = self.take(inner, out) if isinstance(inner, cst.BaseStatement) else None
                if problem is not None:
                    return problem
            return None
        if bound is not None:
            target, value = bound
            if isinstance(target, cst.Name) and target.value == self.expert:
                return None  # expert_idx = expert_idx[0] / .item()
            if isinstance(target, cst.Tuple) and isinstance(value, cst.Call) and dotted(value.func) == "torch.where":
                self.position, self.token = (code(e.value) for e in target.elements)
                return None
            return self._append(line, out)
        if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 and isinstance(line.body[0], cst.Expr):
            call = line.body[0].value
            if (
                isinstance(call, cst.Call)
                and isinstance(call.func, cst.Attribute)
                and call.func.attr.value == "index_add_"
            ):
                self.output = code(call.func.value)
                value = self._rewritten(call.args[2].value)
                if isinstance(value, str):
                    return value
                summed = statement(f"{self.output} = sum_over_choices(VALUE, {self.index})", VALUE=self._cast(value))
                out.append(summed)
                return None
        return f"`{code(line)}`"

    def _append(self, line: cst.BaseStatement, out: list[cst.BaseStatement]) -> str | None:
        rewritten = self._rewritten(line)
        if isinstance(rewritten, str):
            return rewritten
        assert isinstance(rewritten, cst.BaseStatement)
        out.append(rewritten)
        return None

    def _rewritten(self, node: cst.CSTNode) -> cst.CSTNode | str:
        changes: dict[cst.CSTNode, cst.CSTNode] = {}
        for found in find(node, cst.BaseExpression):
            if (
                isinstance(found, cst.Call)
                and dotted(found.func) in LINEAR
                and len(found.args) in (2, 3)
                and self._of_expert(found.args[1].value)
            ):
                self.used.add("expert_linear")
                changes[found.func] = cst.Name("expert_linear")
            elif (
                isinstance(found, cst.BinaryOperation)
                and isinstance(found.operator, cst.MatrixMultiply)
                and self._of_expert(found.right)
            ):
                if any(isinstance(n, cst.Subscript) and self._gathers(n) for n in find(found.left, cst.Subscript)):
                    return f"`{code(found)}`"
                self.used.add("expert_matmul")
                changes[found] = expression("expert_matmul(LEFT, RIGHT)", LEFT=found.left, RIGHT=found.right)
            elif isinstance(found, cst.Subscript) and self._gathers(found):
                if len(found.slice) == 1:
                    changes[found] = expression(f"routed_tokens(HIDDEN, {self.index})", HIDDEN=found.value)
                    self.hidden = code(found.value)
                else:
                    changes[found] = expression("WEIGHTS.reshape(-1, 1)", WEIGHTS=found.value)
        result = replaced(node, changes)
        for name in (self.token, self.position):
            if name is not None and name in names(result):
                return f"`{code(node)}`"
        if any(
            self.expert in names(n)
            for n in find(result, cst.Call)
            if dotted(n.func) not in ("expert_linear", "expert_matmul") and self._passes_expert(n)
        ):
            return f"`{code(node)}`"
        return result

    def _passes_expert(self, call: cst.Call) -> bool:
        return any(isinstance(a.value, cst.Name) and a.value.value == self.expert for a in call.args)

    def _of_expert(self, node: cst.BaseExpression) -> bool:
        """``self.weights[expert_idx]``."""
        return (
            isinstance(node, cst.Subscript)
            and self_attribute(node.value) is not None
            and len(node.slice) == 1
            and code(node.slice[0].slice) == self.expert
        )

    def _gathers(self, node: cst.Subscript) -> bool:
        return self.token is not None and code(node.slice[0].slice) == self.token

    def _cast(self, value: cst.CSTNode) -> cst.BaseExpression:
        """``x.to(final.dtype)`` reads the buffer that is gone; it had the dtype of the hidden states."""
        assert isinstance(value, cst.BaseExpression)
        changes = {
            n: cst.parse_expression(f"{self.hidden}.dtype")
            for n in find(value, cst.Attribute)
            if code(n) == f"{self.output}.dtype" and self.hidden is not None
        }
        return replaced(value, changes)


def _calls(node: cst.CSTNode) -> set[str]:
    return {c.func.attr.value if isinstance(c.func, cst.Attribute) else code(c.func) for c in find(node, cst.Call)}


def _only_continues(branch: cst.If) -> bool:
    lines = [s for s in branch.body.body if isinstance(s, cst.SimpleStatementLine)]
    return (
        branch.orelse is None
        and len(lines) == 1
        and isinstance(lines[0].body[0], cst.Continue)
        and (code(branch.test).endswith(".numel() == 0") or " == self." in code(branch.test))
    )


def _finds_hits(value: cst.BaseExpression, plan: _Plan) -> bool:
    return bool(names(value) & plan.found)


def _only_finds_hits(block: cst.With, plan: _Plan) -> bool:
    return all(
        (bound := assignment(s)) is not None and isinstance(bound[0], cst.Name) and bound[0].value in plan.found
        for s in block.body.body
        if isinstance(s, cst.BaseStatement)
    )


def _stops_when_empty(branch: cst.If, plan: _Plan) -> bool:
    return code(branch.test) == f"{plan.index}.numel() == 0"
