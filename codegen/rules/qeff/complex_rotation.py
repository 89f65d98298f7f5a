"""``qeff/complex-rotation``: complex numbers keep their parts in a last dimension of 2."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import assignment, code, dotted, every_statement, expression, find, parameters, walk

VIEWS = ("torch.view_as_complex", "torch.view_as_real")


class ComplexRotation:
    id = "qeff/complex-rotation"
    roles = frozenset({Role.ATTENTION, Role.PART})
    summary = "multiplies complex numbers by their real and imaginary parts"
    why = "ONNX has no complex numbers; cos and sin come as the two parts of a row"
    cases = (
        Case(
            """
def rotate(q, freqs):
    q_ = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
    freqs = freqs.unsqueeze(1).to(q_.device)
    return torch.view_as_real(q_ * freqs).flatten(3).type_as(q)
""",
            "rotate",
            """
def rotate(q, freqs):
    q_ = q.float().reshape(*q.shape[:-1], -1, 2)
    freqs = freqs.unsqueeze(1).to(q_.device)
    return complex_product(q_, freqs).flatten(3).type_as(q)
""",
        ),
        Case(
            """
def rotate(q, freqs):
    q_ = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real(q_ * freqs[:, :, None, :]).flatten(3)
""",
            "rotate",
            """
def rotate(q, freqs):
    q_ = q.float().reshape(*q.shape[:-1], -1, 2)
    return complex_product(q_, freqs[:, :, None, :]).flatten(3)
""",
        ),
        Case(
            """
def rotate(q, freqs):
    q_ = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real(q_ * freqs.unsqueeze(-2)).flatten(3)
""",
            "rotate",
            refuses="`q_ * freqs.unsqueeze(-2)`",
        ),
        Case(
            """
def rotate(q, freqs):
    q_ = torch.view_as_complex(q.float().reshape(*q.shape[:-1], -1, 2))
    return torch.view_as_real(q_ / freqs).flatten(3)
""",
            "rotate",
            refuses="`torch.view_as_real(q_ / freqs)`",
        ),
        Case("def rotate(q, cos, sin):\n    return q * cos\n", "rotate"),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        views = [c for c in find(function.body, cst.Call) if dotted(c.func) in VIEWS]
        if not views:
            return NotApplicable()
        states: set[str] = set()
        tables = set(parameters(function))
        edits: list[Edit] = []
        understood: set[int] = set()  # reads of complex names whose meaning is known
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is None or not isinstance(bound[0], cst.Name):
                continue
            if isinstance(bound[1], cst.Call) and dotted(bound[1].func) == VIEWS[0]:
                states.add(bound[0].value)
                edits.append(Edit(bound[1], bound[1].args[0].value))
        for view in views:
            if dotted(view.func) == VIEWS[0]:
                if not any(e.node is view for e in edits):
                    return self._refuse(site, view)
                continue
            product = view.args[0].value
            if not isinstance(product, cst.BinaryOperation) or not isinstance(product.operator, cst.Multiply):
                return self._refuse(site, view)
            if not isinstance(product.left, cst.Name) or product.left.value not in states:
                return self._refuse(site, product)
            table = _table(product.right, tables)
            if table is None:
                return self._refuse(site, product)
            understood |= {id(product.left), id(table)}
            new = expression("complex_product(STATES, TABLE)", STATES=product.left, TABLE=product.right)
            edits.append(Edit(view, new))
        rotated = {code(_root(v.args[0].value)) for v in views if dotted(v.func) == VIEWS[1]}
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is not None and isinstance(bound[0], cst.Name) and bound[0].value in rotated:
                table = _table(bound[1], tables)
                if table is None or table.value != bound[0].value:
                    return self._refuse(site, bound[1])
                understood |= {id(table), id(bound[0])}
        for node in walk(function.body):
            if isinstance(node, cst.Attribute) and code(node.value) in states | rotated and node.attr.value == "device":
                understood.add(id(node.value))
            elif isinstance(node, cst.AssignTarget | cst.AnnAssign):
                understood.add(id(node.target))
        for read in find(function.body, cst.Name):
            if read.value in states | rotated and id(read) not in understood:
                return self._refuse(site, read)
        return Edits(edits, {"complex_product": "runtime.qeff.rotary"})

    def _refuse(self, site: Site, node: cst.CSTNode) -> Match:
        return site.refusal(
            self.id,
            node,
            "torch.view_as_real(states * table) with states from torch.view_as_complex and leading dimensions of the "
            "table indexed alone",
            f"`{code(node)}`",
            "teach rules/qeff/complex_rotation.py this use of complex numbers",
        )


def _root(value: cst.BaseExpression) -> cst.BaseExpression:
    """The table's name at the right of a product."""
    node = value.right if isinstance(value, cst.BinaryOperation) else value
    while isinstance(node, cst.Call | cst.Attribute | cst.Subscript):
        node = node.func if isinstance(node, cst.Call) else node.value
    return node


def _table(value: cst.BaseExpression, tables: set[str]) -> cst.Name | None:
    """The name behind ``table``, ``table.unsqueeze(1)``, ``table[:, :, None, :]``, ``table.to(device)``: forms that mean
    the same with a dimension more at the end."""
    while not isinstance(value, cst.Name):
        if isinstance(value, cst.Subscript):
            if not all(code(e.slice) in (":", "None") for e in value.slice):
                return None
            value = value.value
        elif isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute):
            label, given = value.func.attr.value, [code(a.value) for a in value.args]
            if label != "to" and not (label == "unsqueeze" and len(given) == 1 and given[0].isdecimal()):
                return None
            value = value.func.value
        else:
            return None
    return value if value.value in tables else None
