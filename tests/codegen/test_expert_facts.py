"""What is read from the loops of mixtures of experts."""

import libcst as cst
import pytest

from codegen.recognize.choice_weights import origins
from codegen.recognize.entry_points import entered_methods
from codegen.recognize.expert_weights import expert_variable, takes_expert_weights, weight_parameters
from codegen.recognize.grouped_product import GroupedProduct, WeightLayout, grouped_product
from codegen.syntax import code, find
from codegen.upstream import UpstreamModule

PATH = "models/case/modeling_case.py"
SPLIT = """
def forward(self, inputs, sizes):
    parts = inputs.split(sizes, dim=0)
    out = []
    for i in range(self.num_experts):
        out.append({product})
    joined = torch.cat(out, dim=0)
    return joined
"""
SLICED = """
def forward(self, rows, weights, counts):
    output = torch.zeros(rows.shape[0], weights.shape[-1])
    ends = torch.cumsum(counts, dim={dim})
    zero = torch.zeros({first}, dtype=torch.long)
    ends = torch.cat((zero, ends))
    for expert in range(weights.shape[0]):
        start = ends[expert]
        end = ends[expert + 1]
        output[start:end] = torch.matmul(rows[start:end], weights[expert])
    return output
"""


def function(text: str) -> cst.FunctionDef:
    node = cst.parse_statement(text.strip())
    assert isinstance(node, cst.FunctionDef)
    return node


def meaning(product: GroupedProduct | None) -> tuple[str, str, str, WeightLayout, str] | None:
    if product is None:
        return None
    return code(product.rows), code(product.weight), code(product.counts), product.layout, product.result


@pytest.mark.parametrize(
    ("product", "layout"),
    [
        ("F.linear(parts[i], self.weight[i])", WeightLayout.OUT_IN),
        ("torch.matmul(parts[i], self.weight[i])", WeightLayout.IN_OUT),
        ("parts[i] @ self.weight[i]", WeightLayout.IN_OUT),
    ],
)
def test_parts_of_a_split(product: str, layout: WeightLayout) -> None:
    found = grouped_product(function(SPLIT.format(product=product)))
    assert meaning(found) == ("inputs", "self.weight", "sizes", layout, "joined")
    assert found is not None
    assert [code(line).split("\n")[0] for line in found.lines] == [
        "parts = inputs.split(sizes, dim=0)",
        "out = []",
        "for i in range(self.num_experts):",
        "joined = torch.cat(out, dim=0)",
    ]


@pytest.mark.parametrize(
    "product",
    [
        "F.linear(parts[0], self.weight[i])",
        "F.linear(parts[i], self.weight[0])",
        "F.linear(parts[i], self.weight[i], self.bias[i])",
        "F.gelu(parts[i])",
        "F.linear(self.act(parts[i]), self.weight[i])",
    ],
)
def test_other_products_are_not_known(product: str) -> None:
    assert grouped_product(function(SPLIT.format(product=product))) is None


def test_slices_between_cumulated_counts() -> None:
    found = grouped_product(function(SLICED.format(dim=0, first=1)))
    assert meaning(found) == ("rows", "weights", "counts", WeightLayout.IN_OUT, "output")
    assert found is not None
    assert len(found.lines) == 5  # the buffer, the counts' sum, the zero, their join, the loop


@pytest.mark.parametrize(("dim", "first"), [("1", "1"), ("0", "2")])
def test_other_offsets_are_not_known(dim: str, first: str) -> None:
    assert grouped_product(function(SLICED.format(dim=dim, first=first))) is None


@pytest.mark.parametrize(
    ("line", "name"),
    [("expert = hit[0]", "expert"), ("number = int(hit.item())", "number"), ("rows = states[hit]", "hit")],
)
def test_name_of_the_experts_number(line: str, name: str) -> None:
    loop = cst.parse_statement(f"for hit in hits:\n    {line}\n    pass\n")
    assert isinstance(loop, cst.For)
    assert expert_variable(loop) == name


HANDED_ON = """
class Glu:
    def forward(self, x, w1, w2):
        return x @ w1 @ w2

class Experts:
    def __init__(self, config):
        self.mlp = Glu()
    def forward(self, x):
        for hit in hits:
            expert = hit[0]
            first = self.all.view(shape)[expert]
            second = self.other[expert]
            states = self.mlp(x[token], first, w2=second)
            other = elsewhere(x, first)
"""


def test_weights_that_are_handed_on() -> None:
    module = UpstreamModule(PATH, HANDED_ON)
    assert weight_parameters(module, ("Experts", "Glu"), "Glu") == {"w1", "w2"}
    assert weight_parameters(module, ("Experts", "Glu"), "Experts") == frozenset()
    calls = {code(c.func): c for c in find(module.tree, cst.Call)}
    weights = {"first", "second"}
    assert takes_expert_weights(module, "Experts", calls["self.mlp"], weights)
    assert not takes_expert_weights(module, "Experts", calls["elsewhere"], weights)


ENTERED = """
class Part:
    def forward(self, x):
        raise NotImplementedError
    def map(self, x):
        return self.inner(x)
    def inner(self, x):
        return x
    def unused(self, x):
        return x

class Holder:
    def __init__(self, config):
        self.part = Part()
    def forward(self, x):
        return self.part.map(x)
"""


def test_methods_called_by_name_are_entered() -> None:
    entered = entered_methods(UpstreamModule(PATH, ENTERED), ("Holder", "Part"))
    assert [m.name for m in entered["Part"]] == ["forward", "map", "inner"]
    assert [m.name for m in entered["Holder"]] == ["forward"]


ROUTED = """
def spread(scores, weights, chosen):
    return torch.zeros_like(scores).scatter(1, chosen, weights), chosen

class CaseRouter:
    def forward(self, hidden_states):
        scores = self.linear(hidden_states).sigmoid()
        if self.biased:
            _, chosen = torch.topk(scores + self.bias, k=2)
            weights = torch.gather(scores, dim=1, index=chosen).type_as(hidden_states)
        else:
            weights, chosen = scores.topk(2)
        {line}
        return scores, {weights}, chosen

class CaseBlock:
    def __init__(self, config):
        self.router = CaseRouter()
        self.experts = CaseExperts()
    def route(self, hidden_states):
        scores, weights, chosen = self.router(hidden_states)
        return chosen, weights * self.scale
    def forward(self, hidden_states):
        chosen, weights = self.route(hidden_states)
        return self.experts(hidden_states, chosen, weights=weights)

class CaseExperts:
    def forward(self, hidden_states, chosen, weights):
        return hidden_states
"""
BY_CHOICE = [("weights /= weights.sum(-1)", "weights"), ("weights: Tensor = 2 * weights", "weights / 2")]
SPREAD = "weights = scores.scatter(1, chosen, 0)"
KEPT = "weights = scores.gather(1, chosen)"
NOT_BY_CHOICE = [
    (f"{SPREAD}\n        if self.sparse:\n            {KEPT}", "weights", "CaseRouter.forward"),
    (f"if self.sparse:\n            {KEPT}\n        else:\n            {SPREAD}", "weights", "CaseRouter.forward"),
    ("weights = other = torch.zeros_like(scores).scatter_(1, chosen, weights)", "weights", "CaseRouter.forward"),
    ("weights, chosen = spread(scores, weights, chosen)", "weights", "spread"),
    (f"if self.training: {SPREAD}", "weights", "CaseRouter.forward"),
    ("weights = scores.masked_fill(scores < weights.min(), 0)", "weights", "CaseBlock.forward"),
    ("pass", "scores", "CaseBlock.forward"),
    ("pass", "torch.topk(scores, 2)[1]", "CaseBlock.forward"),
    ("_, weights = torch.topk(scores, 2)", "weights", "CaseRouter.forward"),
]


@pytest.mark.parametrize(("line", "weights"), BY_CHOICE)
def test_weights_by_choice(line: str, weights: str) -> None:
    module = UpstreamModule(PATH, ROUTED.format(line=line, weights=weights))
    assert [o.chosen for o in origins(module, tuple(module.classes), "CaseExperts", "weights")] == [True]


@pytest.mark.parametrize(("line", "weights", "where"), NOT_BY_CHOICE)
def test_weights_that_are_not_by_choice(line: str, weights: str, where: str) -> None:
    module = UpstreamModule(PATH, ROUTED.format(line=line, weights=weights))
    found = origins(module, tuple(module.classes), "CaseExperts", "weights")
    assert [(o.chosen, o.where) for o in found] == [(False, where)]


def test_weights_that_the_experts_bind_anew() -> None:
    text = ROUTED.format(line="pass", weights="weights").replace("return hidden_states\n", "weights = f(weights)\n")
    module = UpstreamModule(PATH, text)
    (found,) = origins(module, tuple(module.classes), "CaseExperts", "weights")
    assert not found.chosen and code(found.node) == "weights = f(weights)"
