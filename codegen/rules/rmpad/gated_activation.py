"""``rmpad/gated-activation``: ``act(gate) * up`` may run as one kernel."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import dotted, expression, find, self_attribute

FUNCTION = "gated"
ACTIVATIONS = ("ACT2FN", "nn.SiLU", "nn.GELU", "GELUActivation", "SiLUActivation")


class GatedActivation:
    id = "rmpad/gated-activation"
    roles = frozenset(Role)
    summary = "hands activation, gate and value to the runtime, which has a kernel for some activations"
    why = "an activation and a product are two passes over the widest tensor of the layer, and one kernel is one"
    cases = (
        Case(
            """
class CaseMLP:
    def __init__(self, config):
        self.act_fn = ACT2FN[config.hidden_act]
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
""",
            "CaseMLP.forward",
            """
    def forward(self, x):
        return self.down_proj(gated(self, self.act_fn, self.gate_proj(x), self.up_proj(x)))
""",
        ),
        Case(
            """
class CaseMLP:
    def __init__(self, config):
        self.act_fn = ACT2FN[config.hidden_act]
    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(up * self.act_fn(gate))
""",
            "CaseMLP.forward",
            """
    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(gated(self, self.act_fn, gate, up))
""",
        ),
        Case(
            """
class CaseMLP:
    def __init__(self, config):
        self.act_fn = ACT2FN[config.hidden_act]
    def forward(self, x):
        return self.down_proj(self.act_fn(self.up_proj(x)))
""",
            "CaseMLP.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        built = site.module.attributes(site.cls)
        edits: list[Edit] = []
        if site.cls in site.family.experts:
            return NotApplicable()  # upstream's decorator picks the implementation of this forward
        for product in find(site.function.body, cst.BinaryOperation):
            if not isinstance(product.operator, cst.Multiply):
                continue
            for left, right in ((product.left, product.right), (product.right, product.left)):
                attribute = self_attribute(left.func) if isinstance(left, cst.Call) and len(left.args) == 1 else None
                value = built.get(attribute) if attribute is not None else None
                if value is None or not isinstance(left, cst.Call) or not _is_activation(value):
                    continue
                call = expression(
                    f"{FUNCTION}(self, self.{attribute}, GATE, VALUE)", GATE=left.args[0].value, VALUE=right
                )
                edits.append(Edit(product, call))
                break
        return Edits(edits, {FUNCTION: "runtime.training.kernels.activation"}) if edits else NotApplicable()


def _is_activation(value: cst.BaseExpression) -> bool:
    """``ACT2FN[...]`` or a constructor of an activation."""
    if isinstance(value, cst.Subscript):
        return dotted(value.value) in ACTIVATIONS
    return isinstance(value, cst.Call) and dotted(value.func) in ACTIVATIONS
