"""``qeff/rounded-product``: a product in bfloat16 is one in float32 that is rounded to bfloat16."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import code, expression, find

ROUNDED = ".bfloat16()"


class RoundedProduct:
    id = "qeff/rounded-product"
    roles = frozenset({Role.BACKBONE, Role.ATTENTION, Role.PART})
    summary = "multiplies numbers that upstream rounds to bfloat16 in float32, and rounds the product"
    why = (
        "the same values, as a product of two bfloat16 is exact in float32; runtimes cast to bfloat16, few multiply it"
    )
    cases = (
        Case(
            """
def bias(slopes, places):
    return slopes[..., None].bfloat16() * places
""",
            "bias",
            """
def bias(slopes, places):
    return (slopes[..., None].bfloat16().float() * places.bfloat16().float()).bfloat16()
""",
        ),
        Case("def bias(slopes, places):\n    return slopes.bfloat16() + places\n", "bias"),
    )

    def match(self, site: Site) -> Match:
        edits = []
        for product in find(site.function.body, cst.BinaryOperation):
            if isinstance(product.operator, cst.Multiply) and any(map(_is_rounded, (product.left, product.right))):
                sides = {"A": _rounded(product.left), "B": _rounded(product.right)}
                edits.append(Edit(product, expression("(A.float() * B.float()).bfloat16()", **sides)))
        return Edits(edits) if edits else NotApplicable()


def _is_rounded(value: cst.BaseExpression) -> bool:
    return isinstance(value, cst.Call) and code(value).endswith(ROUNDED)


def _rounded(value: cst.BaseExpression) -> cst.BaseExpression:
    """An integer or wider factor is rounded before it is multiplied, too."""
    return value if _is_rounded(value) else expression("X.bfloat16()", X=value)
