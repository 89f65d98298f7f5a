"""``qeff/expert-weights``: a part of an expert that is given the expert's weights is given those of every row."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.expert_weights import weight_parameters
from codegen.recognize.grouped_product import LINEAR
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import Replacement, below, code, dotted, every_statement, expression, find, replaced

SOURCE = "runtime.qeff.experts"
PRODUCTS = ("expert_linear", "expert_matmul")
LOOP = """
class CaseExperts:
    def __init__(self, config):
        self.mlp = CaseGLU(config)
    def forward(self, hidden_states, top_k_index, top_k_weights):
        for expert_idx in expert_hit:
            expert_idx = expert_idx[0]
            w1 = self.mlp.w1.view(shape)[expert_idx]
            w2 = self.mlp.w2.view(shape)[expert_idx]
            states = self.mlp(hidden_states[token_idx], w1, expert_w2=w2)
        return states
"""


class ExpertWeights:
    id = "qeff/expert-weights"
    roles = frozenset({Role.PART})
    summary = "multiplies each row by the weights of its own expert"
    why = "the loop over experts became one batch of rows, and its weights came to have one matrix for each of them"
    cases = (
        Case(
            """
class CaseGLU:
    def forward(self, x, expert_w1, expert_w2):
        gate = self.act(torch.matmul(x, expert_w1))
        return F.linear(gate @ expert_w1, expert_w2) + gate.matmul(expert_w2.t())
"""
            + LOOP,
            "CaseGLU.forward",
            """
    def forward(self, x, expert_w1, expert_w2):
        gate = self.act(expert_matmul(x, expert_w1))
        return expert_linear(expert_matmul(gate, expert_w1), expert_w2) + expert_linear(gate, expert_w2)
""",
        ),
        Case(
            """
class CaseGLU:
    def forward(self, x, expert_w1, expert_w2):
        return self.act(x @ expert_w1) @ expert_w2.flip(0)
"""
            + LOOP,
            "CaseGLU.forward",
            refuses="`return self.act(x @ expert_w1) @ expert_w2.flip(0)`",
        ),
        Case("class CaseMLP:\n    def forward(self, x, w):\n        return x @ w\n", "CaseMLP.forward"),
    )

    def match(self, site: Site) -> Match:
        weights = weight_parameters(site.module, site.family.reachable, site.cls)
        if not weights or site.function.name.value != "forward":
            return NotApplicable()
        product = _Products(weights)
        edits = [Edit(node, new) for node, new in product.outermost(site.function.body)]
        for read in find(site.function.body, cst.Name):
            if read.value in weights and id(read) not in product.understood:
                return site.refusal(
                    self.id,
                    read,
                    "rows.matmul(weight), rows @ weight, the same with weight.t(), or F.linear(rows, weight)",
                    f"`{code(_line(site.function, read))}`",
                    "teach rules/qeff/expert_weights.py this use of one expert's weight",
                )
        return Edits(edits, dict.fromkeys(sorted(product.used), SOURCE)) if edits else NotApplicable()


def _line(function: cst.FunctionDef, read: cst.Name) -> cst.CSTNode:
    lines = (s for s in every_statement(function.body) if isinstance(s, cst.SimpleStatementLine))
    return next((line for line in lines if any(n is read for n in find(line, cst.Name))), read)


class _Products:
    """Products with an expert's weight, outermost first; the rows of one may hold another."""

    def __init__(self, weights: frozenset[str]) -> None:
        self.weights = weights
        self.used: set[str] = set()
        self.understood: set[int] = set()  # reads of a weight that became part of a product

    def outermost(self, node: cst.CSTNode) -> list[tuple[cst.CSTNode, cst.BaseExpression]]:
        new = self._product(node) if isinstance(node, cst.BaseExpression) else None
        if new is not None:
            return [(node, new)]
        return [pair for child in below(node) for pair in self.outermost(child)]

    def _product(self, node: cst.BaseExpression) -> cst.BaseExpression | None:
        if isinstance(node, cst.Call) and dotted(node.func) in PRODUCTS:
            self.understood |= {id(a.value) for a in node.args}  # this rule was here
        operands = _operands(node)
        weight = _weight(operands[1], self.weights) if operands is not None else None
        if operands is None or weight is None:
            return None
        self.understood.add(id(weight[0]))
        name = "expert_linear" if operands[2] != weight[1] else "expert_matmul"
        self.used.add(name)
        changes: dict[cst.CSTNode, Replacement] = dict(self.outermost(operands[0]))
        whole = changes.get(operands[0])
        rows = whole if isinstance(whole, cst.BaseExpression) else replaced(operands[0], changes)
        return expression(f"{name}(ROWS, WEIGHT)", ROWS=rows, WEIGHT=weight[0])


def _operands(node: cst.BaseExpression) -> tuple[cst.BaseExpression, cst.BaseExpression, bool] | None:
    """Rows, weight, and whether the product itself takes the weight transposed."""
    if isinstance(node, cst.BinaryOperation) and isinstance(node.operator, cst.MatrixMultiply):
        return node.left, node.right, False
    if not isinstance(node, cst.Call) or any(a.keyword is not None for a in node.args):
        return None
    given = [a.value for a in node.args]
    if dotted(node.func) in LINEAR and len(given) == 2:
        return given[0], given[1], True
    if dotted(node.func) == "torch.matmul" and len(given) == 2:
        return given[0], given[1], False
    if isinstance(node.func, cst.Attribute) and node.func.attr.value == "matmul" and len(given) == 1:
        return node.func.value, given[0], False
    return None


def _weight(value: cst.BaseExpression, weights: frozenset[str]) -> tuple[cst.Name, bool] | None:
    """The weight's name, and whether it is transposed: ``w``, ``w.t()``, ``w.T``."""
    if isinstance(value, cst.Name):
        return (value, False) if value.value in weights else None
    inner = value.func if isinstance(value, cst.Call) and not value.args else value
    if not isinstance(inner, cst.Attribute) or not isinstance(inner.value, cst.Name):
        return None
    transposes = (inner.attr.value, isinstance(value, cst.Call)) in (("t", True), ("T", False))
    return (inner.value, True) if transposes and inner.value.value in weights else None
