"""``qeff/expert-loop``: the loop over experts that were hit becomes one batch of (token, choice) pairs."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.choice_weights import Origin, origins
from codegen.recognize.expert_routing import Routing, finds_hits, stops_when_empty
from codegen.recognize.expert_weights import expert_variable
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.expert_batch import ExpertBatch
from codegen.syntax import assignment, code, dotted, every_statement, find, one_line, statement, statements

SOURCE = "runtime.qeff.experts"
BLOCK = """
class CaseBlock:
    def __init__(self, config):
        self.router = CaseRouter(config)
        self.experts = CaseExperts(config)
    def forward(self, hidden_states):
        weights, chosen = self.router(hidden_states)
        return self.experts(hidden_states, chosen, weights)

class CaseRouter:
    def forward(self, hidden_states):
        scores = self.linear(hidden_states).softmax(dim=-1)
        weights, chosen = torch.topk(scores, 2)
        return weights, chosen

"""
SPREAD = BLOCK.replace(
    "        return weights, chosen",
    "        weights = torch.zeros_like(scores).scatter_(1, chosen, weights)\n        return weights, chosen",
)
LOOP = """
class CaseExperts:
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            expert_idx = expert_idx[0]
            pos, token_idx = torch.where(expert_mask[expert_idx])
            current = nn.functional.linear(hidden_states[token_idx], self.up_proj[expert_idx])
            final_hidden_states.index_add_(0, token_idx, current * top_k_weights[token_idx, pos, None])
        return final_hidden_states
"""


class ExpertLoop:
    id = "qeff/expert-loop"
    roles = frozenset({Role.PART})
    summary = "gathers the chosen experts' weights and runs every (token, choice) pair in one batch"
    why = "a loop over the experts that happen to be hit depends on the data and cannot be traced"
    cases = (
        Case(
            BLOCK
            + """
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
            BLOCK
            + """
class CaseExperts:
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_number in expert_hit:
            expert_idx = int(expert_number.item())
            pos, token_idx = torch.where(expert_mask[expert_idx])
            rows = hidden_states[token_idx]
            if expert_idx >= self.num_real or self.up_proj is None:
                current = self.same(rows)
            else:
                current = nn.functional.linear(rows, self.up_proj[expert_idx])
            final_hidden_states.index_add_(0, token_idx, current * top_k_weights[token_idx, pos, None])
        return final_hidden_states
""",
            "CaseExperts.forward",
            """
    def forward(self, hidden_states, top_k_index, top_k_weights):
        expert_idx = top_k_index.reshape(-1)
        rows = routed_tokens(hidden_states, top_k_index)
        if self.up_proj is None:
            current = self.same(rows)
        else:
            expert_idx_in_range = expert_idx.clamp(max=self.num_real - 1)
            current = expert_linear(rows, self.up_proj[expert_idx_in_range])
            current = torch.where((expert_idx >= self.num_real).unsqueeze(-1), self.same(rows), current)
        final_hidden_states = sum_over_choices(current * top_k_weights.reshape(-1, 1), top_k_index)
        return final_hidden_states
""",
        ),
        Case(
            BLOCK
            + """
class CaseExperts:
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit:
            pos, token_idx = torch.where(expert_mask[expert_idx])
            if expert_idx % 2 == 0:
                current = self.identity(hidden_states[token_idx])
            else:
                current = nn.functional.linear(hidden_states[token_idx], self.up_proj[expert_idx])
            final_hidden_states.index_add_(0, token_idx, current * top_k_weights[token_idx, pos, None])
        return final_hidden_states
""",
            "CaseExperts.forward",
            refuses="expert_idx % 2 == 0",
        ),
        Case(
            BLOCK
            + """
class CaseExperts:
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
        for expert_idx in expert_mask.nonzero():
            pos, token_idx = torch.where(expert_mask[expert_idx])
            weight = self.up_proj[expert_idx]
            current = elsewhere(hidden_states[token_idx], weight)
            final_hidden_states.index_add_(0, token_idx, current * top_k_weights[token_idx, pos, None])
        return final_hidden_states
""",
            "CaseExperts.forward",
            refuses="elsewhere(hidden_states[token_idx], weight)",
        ),
        Case(
            BLOCK
            + """
class CaseExperts:
    def forward(self, hidden_states, top_k_index, top_k_weights):
        final_hidden_states = torch.zeros_like(hidden_states)
        expert_mask = torch.nn.functional.one_hot(top_k_index, num_classes=self.num_experts).permute(2, 1, 0)
        expert_hit = torch.greater(expert_mask.sum(dim=(-1, -2)), 0).nonzero()
        for expert_idx in expert_hit[1:]:
            pos, token_idx = torch.where(expert_mask[expert_idx])
            current = nn.functional.linear(hidden_states[token_idx], self.up_proj[expert_idx])
            final_hidden_states.index_add_(0, token_idx, current * top_k_weights[token_idx, pos, None])
        return final_hidden_states
""",
            "CaseExperts.forward",
            refuses="for expert_idx in expert_hit[1:]",
        ),
        Case(
            BLOCK
            + LOOP.replace(
                "            pos,",
                "            if self.padding_expert == expert_idx:\n                continue\n            pos,",
            ),
            "CaseExperts.forward",
            """
    def forward(self, hidden_states, top_k_index, top_k_weights):
        expert_idx = top_k_index.reshape(-1)
        current = expert_linear(routed_tokens(hidden_states, top_k_index), self.up_proj[expert_idx])
        final_hidden_states = sum_over_choices(current * top_k_weights.reshape(-1, 1), top_k_index)
        return final_hidden_states
""",
        ),
        Case(
            BLOCK
            + LOOP.replace(
                "            pos,",
                "            if self.rows == len(hidden_states):\n                continue\n            pos,",
            ),
            "CaseExperts.forward",
            refuses="self.rows == len(hidden_states)",
        ),
        Case(
            SPREAD + LOOP,
            "CaseExperts.forward",
            refuses="`torch.zeros_like(scores).scatter_(1, chosen, weights)`",
        ),
        Case(
            BLOCK + LOOP.replace("token_idx, pos, None", "token_idx, expert_idx, None"),
            "CaseExperts.forward",
            refuses="`top_k_weights[token_idx, expert_idx, None]`",
        ),
        Case(
            BLOCK.replace("self.experts(", "self.checkpointed(") + LOOP,
            "CaseExperts.forward",
            refuses="no call that hands `top_k_weights` over",
        ),
        Case("class CaseMLP:\n    def forward(self, x):\n        return self.down(x)\n", "CaseMLP.forward"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        if not isinstance(function.body, cst.IndentedBlock):
            return NotApplicable()
        top = statements(function)
        loop = next((s for s in top if isinstance(s, cst.For) and "index_add_" in _calls(s)), None)
        if loop is None or not isinstance(loop.target, cst.Name):
            return NotApplicable()
        hot = next((c for c in find(function.body, cst.Call) if (dotted(c.func) or "").endswith("one_hot")), None)
        if hot is None or not isinstance(hot.args[0].value, cst.Name):
            return self._refuse(site, function, "no one_hot(top_k_index, ...) before the loop")
        index = hot.args[0].value.value
        plan = ExpertBatch(site, index, expert_variable(loop))
        new_lines: list[cst.BaseStatement] = [statement(f"{plan.expert} = {index}.reshape(-1)")]
        for line in statements(loop):
            problem = plan.take(line, new_lines)
            if problem is not None:
                return self._refuse(site, line, problem)
        if plan.output is None:
            return self._refuse(site, loop, "no index_add_ at the end of the loop")
        edits: list[Edit] = []
        routing = Routing(index)
        for line in top[: top.index(loop)]:
            bound = assignment(line)
            found = routing.found | {plan.output}
            if isinstance(line, cst.With) and (finds_hits(line, found) or "one_hot" in _calls(line)):
                for inner in every_statement(line.body):
                    problem = routing.problem(inner, plan.output)
                    if problem is not None:
                        return self._refuse(site, line, problem)
                edits.append(Edit(line, cst.RemoveFromParent()))
            elif bound is not None and isinstance(bound[0], cst.Name):
                if bound[0].value == plan.output or finds_hits(bound[1], found) or "one_hot" in _calls(line):
                    problem = routing.problem(line, plan.output)
                    if problem is not None:
                        return self._refuse(site, line, problem)
                    edits.append(Edit(line, cst.RemoveFromParent()))
            elif isinstance(line, cst.If) and stops_when_empty(line, plan.index):
                edits.append(Edit(line, cst.RemoveFromParent()))
        if code(loop.iter) not in routing.hits or plan.mask not in routing.permuted:
            return self._refuse(site, loop, f"`for {code(loop.target)} in {code(loop.iter)}`")
        edits.append(Edit(loop, cst.FlattenSentinel(new_lines)))
        for name in sorted(plan.choice_weights):
            handed = origins(site.module, site.family.reachable, site.cls, name)
            if not handed:
                return self._refuse(site, function, f"no call that hands `{name}` over")
            spread = next((origin for origin in handed if not origin.chosen), None)
            if spread is not None:
                return self._refuse_weights(site, spread)
        used = {"routed_tokens", "sum_over_choices", *plan.used}
        return Edits(edits, dict.fromkeys(sorted(used), SOURCE))

    def _refuse_weights(self, site: Site, origin: Origin) -> Match:
        return site.refusal(
            self.id,
            origin.node,
            "one weight for each choice of a token, as topk or gather yields them, for experts that read them by choice",
            f"`{one_line(origin.node)}`",
            "where upstream hands over one weight for each expert, its experts read the wrong ones; teach "
            "recognize/choice_weights.py another way to choose",
            where=origin.where,
        )

    def _refuse(self, site: Site, node: cst.CSTNode, found: str) -> Match:
        return site.refusal(
            self.id,
            node,
            "a loop over hit experts that gathers tokens, applies weights[expert], and adds back",
            found,
            "teach rules/qeff/expert_loop.py this step, or refuse the family",
        )


def _calls(node: cst.CSTNode) -> set[str]:
    return {c.func.attr.value if isinstance(c.func, cst.Attribute) else code(c.func) for c in find(node, cst.Call)}
