"""``qeff/grouped-experts``: rows sorted by expert and multiplied group by group become one batch of rows."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.grouped_product import GroupedProduct, WeightLayout, grouped_product
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import code, dotted, expression, find, one_line, parameters, statement, statements

SOURCE = "runtime.qeff.experts"
CALLS = {WeightLayout.OUT_IN: "grouped_linear", WeightLayout.IN_OUT: "grouped_matmul"}


class GroupedExperts:
    id = "qeff/grouped-experts"
    roles = frozenset({Role.PART})
    summary = "multiplies every row by the weight of the expert whose group it is in"
    why = "the sizes of the experts' groups depend on the data: a split or a slice by them cannot be traced"
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
""",
            "CaseExperts.forward",
            """
    def forward(self, inputs, expert_size):
        results = grouped_linear(inputs, self.weight, expert_size)
        return results
""",
        ),
        Case(
            """
def sequential(states, weights, counts):
    output = torch.zeros(states.shape[0], weights.shape[-1])
    ends = torch.cumsum(counts, dim=0)
    zero = torch.zeros(1, dtype=torch.long)
    ends = torch.cat((zero, ends))
    for number in range(weights.shape[0]):
        start = ends[number]
        end = ends[number + 1]
        output[start:end] = torch.matmul(states[start:end], weights[number])
    return output

class CaseExperts:
    def forward(self, x, counts):
        return sequential(x, self.weight, counts.cpu())
""",
            "CaseExperts.forward",
            """
    def forward(self, x, counts):
        return grouped_matmul(x, self.weight, counts)
""",
        ),
        Case(
            """
class CaseExperts:
    def forward(self, inputs, expert_size):
        input_list = inputs.split(expert_size, dim=0)
        return [F.gelu(input_list[i]) for i in range(self.num_experts)]
""",
            "CaseExperts.forward",
            refuses="`inputs.split(expert_size, dim=0)`",
        ),
        Case("class CaseMLP:\n    def forward(self, x):\n        return self.down(x)\n", "CaseMLP.forward"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        product = grouped_product(function)
        if product is not None:
            line = statement(
                f"{product.result} = {CALLS[product.layout]}(ROWS, WEIGHT, COUNTS)",
                ROWS=product.rows,
                WEIGHT=product.weight,
                COUNTS=product.counts,
            )
            edits = [Edit(s, line if s is product.loop else cst.RemoveFromParent()) for s in product.lines]
            return Edits(edits, {CALLS[product.layout]: SOURCE})
        calls: list[Edit] = []
        used: dict[str, str] = {}
        for call in find(function.body, cst.Call):
            name = dotted(call.func)
            callee = site.module.functions.get(name) if name is not None else None
            grouped = grouped_product(callee) if callee is not None else None
            if callee is not None and grouped is not None:
                given = _given(callee, grouped, call)
                if given is None:
                    return self._refuse(site, call)
                new = expression(f"{CALLS[grouped.layout]}(ROWS, WEIGHT, COUNTS)", **given)
                calls.append(Edit(call, new))
                used[CALLS[grouped.layout]] = SOURCE
            elif _splits_by_argument(function, call):
                return self._refuse(site, call)
        return Edits(calls, used) if calls else NotApplicable()

    def _refuse(self, site: Site, call: cst.Call) -> Match:
        return site.refusal(
            self.id,
            call,
            "a split of rows by the experts' counts whose parts are multiplied by weight[i] and put together again",
            f"`{code(call)}`",
            "teach recognize/grouped_product.py this form",
        )


def _given(callee: cst.FunctionDef, product: GroupedProduct, call: cst.Call) -> dict[str, cst.BaseExpression] | None:
    """The call's arguments by what they mean; None when the function does more than the product."""
    rest = [s for s in statements(callee) if s not in product.lines]
    returned = rest[-1] if rest else None
    if not isinstance(returned, cst.SimpleStatementLine) or one_line(returned) != f"return {product.result}":
        return None
    by_name = dict(zip(parameters(callee), (a.value for a in call.args if a.keyword is None), strict=False))
    by_name.update({a.keyword.value: a.value for a in call.args if a.keyword is not None})
    meanings = {"ROWS": product.rows, "WEIGHT": product.weight, "COUNTS": product.counts}
    found = {hole: _on_device(by_name[code(value)]) for hole, value in meanings.items() if code(value) in by_name}
    return found if len(found) == len(meanings) else None


def _on_device(value: cst.BaseExpression) -> cst.BaseExpression:
    """``x`` for ``x.cpu()``: a loop reads the counts on the host, a batch has no need to."""
    if isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and value.func.attr.value == "cpu":
        return value.func.value
    return value


def _splits_by_argument(function: cst.FunctionDef, call: cst.Call) -> bool:
    """``x.split(sizes)`` with sizes that the caller counted."""
    if not isinstance(call.func, cst.Attribute) or call.func.attr.value != "split":
        return False
    return any(
        code(a.value) in parameters(function)
        for a in call.args
        if a.keyword is None and code(call.func.value) != "torch"
    )
