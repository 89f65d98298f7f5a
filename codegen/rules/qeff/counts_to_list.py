"""``qeff/counts-to-list``: rows per expert stay a tensor."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.grouped_product import grouped_product
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, every_statement, find


class CountsToList:
    id = "qeff/counts-to-list"
    roles = frozenset({Role.PART})
    summary = "keeps the number of rows of each expert in a tensor"
    why = "a Python list of what the data happened to be is a constant of the exported graph"
    cases = (
        Case(
            """
class CaseExperts:
    def forward(self, inputs, expert_size):
        input_list = inputs.split(expert_size, dim=0)
        output_list = []
        for i in range(self.num_experts):
            output_list.append(F.linear(input_list[i], self.weight[i]))
        results = torch.cat(output_list, dim=0)
        return results

class CaseRouter:
    def forward(self, gates):
        expert_size = gates.long().sum(0)
        expert_size = expert_size.tolist()
        return expert_size
""",
            "CaseRouter.forward",
            """
    def forward(self, gates):
        expert_size = gates.long().sum(0)
        return expert_size
""",
        ),
        Case(
            """
class CaseRouter:
    def forward(self, gates):
        expert_size = gates.long().sum(0).tolist()
        return expert_size
""",
            "CaseRouter.forward",
            refuses="no class here takes the counts",
        ),
        Case("class CaseMLP:\n    def forward(self, x):\n        return self.down(x)\n", "CaseMLP.forward"),
    )

    def match(self, site: Site) -> Match:
        lists = [
            c
            for c in find(site.function.body, cst.Call)
            if isinstance(c.func, cst.Attribute) and c.func.attr.value == "tolist" and not c.args
        ]
        if not lists:
            return NotApplicable()
        edits: list[Edit] = []
        for line in every_statement(site.function.body):
            bound = assignment(line)
            if bound is not None and code(bound[1]) == f"{code(bound[0])}.tolist()":
                edits.append(Edit(line, cst.RemoveFromParent()))
        taken = any(
            grouped_product(method.node) is not None
            for cls in site.family.reachable
            for method in site.module.reachable_methods(cls)
        )
        if len(edits) == len(lists) and taken:
            return Edits(edits)
        return site.refusal(
            self.id,
            lists[0],
            "`counts = counts.tolist()`, for a class that splits its rows by them",
            f"`{code(lists[0])}`" if taken else f"`{code(lists[0])}`, and no class here takes the counts",
            "values of tensors are not known while a graph is traced; keep them in tensors",
        )
