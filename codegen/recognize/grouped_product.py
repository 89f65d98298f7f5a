"""Rows sorted by expert, multiplied group by group: what such a loop multiplies, read from its arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import libcst as cst

from codegen.syntax import Replacement, assignment, code, dotted, find, names, one_line, replaced, statements

Node = TypeVar("Node", bound=cst.CSTNode)

LINEAR = ("nn.functional.linear", "torch.nn.functional.linear", "F.linear")


class WeightLayout(Enum):
    """How one expert's weight is stored."""

    OUT_IN = "as nn.Linear stores it"
    IN_OUT = "as the right side of a product"


@dataclass(frozen=True)
class GroupedProduct:
    """``result = cat(rows_of_expert(i) x weight[i] for every i)``; ``lines`` are the statements that say only that."""

    rows: cst.BaseExpression
    weight: cst.BaseExpression
    counts: cst.BaseExpression
    layout: WeightLayout
    result: str
    lines: tuple[cst.BaseStatement, ...]  # the loop is among them
    loop: cst.For


def grouped_product(function: cst.FunctionDef) -> GroupedProduct | None:
    """The product, or None. Two spellings of "the rows of expert i" are known: parts of a split by counts, and a slice
    between cumulated counts."""
    lines = statements(function)
    loop = next((s for s in lines if isinstance(s, cst.For) and _counts_up(s)), None)
    if loop is None or not isinstance(loop.target, cst.Name):
        return None
    before = lines[: lines.index(loop)]
    known: dict[str, cst.BaseExpression] = {}
    for line in before:
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name):
            known[bound[0].value] = _inlined(bound[1], known)
    last = _last_line(loop)
    if last is None:
        return None
    found = _appended(last, loop.target.value, known, lines) or _stored(last, loop.target.value, known)
    if found is None:
        return None
    rows, product, counts, result, after = found
    weight = _of_expert(product, rows, loop.target.value)
    if weight is None:
        return None
    used = {result} | {
        name
        for line in before
        if (bound := assignment(line)) is not None
        and isinstance(bound[0], cst.Name)
        and _only_read_in(name := bound[0].value, lines, [*before, loop, *after])
    }
    gone = [line for line in before if (bound := assignment(line)) is not None and code(bound[0]) in used]
    whole_rows = _whole(rows)
    assert whole_rows is not None
    return GroupedProduct(whole_rows, weight[0], counts, weight[1], result, (*gone, loop, *after), loop)


def _counts_up(loop: cst.For) -> bool:
    return isinstance(loop.iter, cst.Call) and dotted(loop.iter.func) == "range" and len(loop.iter.args) == 1


def _last_line(loop: cst.For) -> cst.BaseSmallStatement | None:
    """The loop's last statement with the loop's own variables written out."""
    known: dict[str, cst.BaseExpression] = {}
    body = statements(loop)
    for line in body[:-1]:
        bound = assignment(line)
        if bound is None or not isinstance(bound[0], cst.Name):
            return None
        known[bound[0].value] = _inlined(bound[1], known)
    end = body[-1] if body else None
    if not isinstance(end, cst.SimpleStatementLine) or len(end.body) != 1:
        return None
    return _inlined(end.body[0], known)


_Found = tuple[cst.BaseExpression, cst.BaseExpression, cst.BaseExpression, str, list[cst.BaseStatement]]


def _appended(
    last: cst.BaseSmallStatement,
    index: str,
    known: dict[str, cst.BaseExpression],
    lines: list[cst.BaseStatement],
) -> _Found | None:
    """``parts = rows.split(counts, dim=0)``, ``out.append(parts[i] x weight[i])``, ``result = torch.cat(out)``."""
    call = last.value if isinstance(last, cst.Expr) else None
    if not isinstance(call, cst.Call) or not isinstance(call.func, cst.Attribute) or call.func.attr.value != "append":
        return None
    collected = code(call.func.value)
    product = call.args[0].value
    part = next(
        (s for s in find(product, cst.Subscript) if isinstance(s.value, cst.Name) and s.value.value in known), None
    )
    if part is None or not isinstance(part.value, cst.Name) or code(part.slice[0].slice) != index:
        return None
    split = known[part.value.value]
    if not isinstance(split, cst.Call) or not isinstance(split.func, cst.Attribute) or split.func.attr.value != "split":
        return None
    given = [a.value for a in split.args if a.keyword is None]
    rows = given.pop(0) if code(split.func.value) == "torch" else split.func.value
    dims = [code(a.value) for a in split.args if a.keyword is not None] + [code(v) for v in given[1:]]
    if not given or dims not in ([], ["0"]):
        return None
    for line in lines:
        bound = assignment(line)
        joined = (f"torch.cat({collected}, dim=0)", f"torch.cat({collected})")
        if bound is not None and isinstance(bound[0], cst.Name) and one_line(bound[1]) in joined:
            sliced = part.with_changes(value=rows)
            return sliced, replaced(product, {part: sliced}), given[0], bound[0].value, [line]
    return None


def _stored(last: cst.BaseSmallStatement, index: str, known: dict[str, cst.BaseExpression]) -> _Found | None:
    """``out[o[i] : o[i + 1]] = rows[o[i] : o[i + 1]] x weight[i]`` with ``o`` the cumulated counts after a zero."""
    if not isinstance(last, cst.Assign) or len(last.targets) != 1:
        return None
    target = last.targets[0].target
    bounds = _bounds(target, index)
    if bounds is None or not isinstance(target, cst.Subscript) or not isinstance(target.value, cst.Name):
        return None
    rows = next((s for s in find(last.value, cst.Subscript) if _bounds(s, index) == bounds), None)
    counts = _cumulated(known.get(bounds))
    if rows is None or counts is None:
        return None
    return rows, last.value, counts, target.value.value, []


def _bounds(node: cst.CSTNode, index: str) -> str | None:
    """``o`` for ``x[o[i] : o[i + 1]]``."""
    if not isinstance(node, cst.Subscript) or len(node.slice) != 1 or not isinstance(node.slice[0].slice, cst.Slice):
        return None
    part = node.slice[0].slice
    if part.lower is None or part.upper is None or not isinstance(part.lower, cst.Subscript):
        return None
    offsets = code(part.lower.value)
    wanted = (f"{offsets}[{index}]", f"{offsets}[{index} + 1]")
    return offsets if (code(part.lower), code(part.upper)) == wanted else None


def _cumulated(value: cst.BaseExpression | None) -> cst.BaseExpression | None:
    """``counts`` of ``torch.cat((torch.zeros(1, ...), torch.cumsum(counts, dim=0)))``."""
    if not isinstance(value, cst.Call) or dotted(value.func) != "torch.cat" or not value.args:
        return None
    parts = value.args[0].value
    if not isinstance(parts, cst.Tuple | cst.List) or len(parts.elements) != 2:
        return None
    zero, ends = (e.value for e in parts.elements)
    is_zero = isinstance(zero, cst.Call) and dotted(zero.func) == "torch.zeros" and code(zero.args[0].value) == "1"
    if not is_zero or not isinstance(ends, cst.Call) or dotted(ends.func) != "torch.cumsum":
        return None
    return ends.args[0].value if [code(a.value) for a in ends.args[1:]] == ["0"] else None


def _of_expert(
    product: cst.BaseExpression, rows: cst.BaseExpression, index: str
) -> tuple[cst.BaseExpression, WeightLayout] | None:
    """All experts' weights in ``linear(rows, weight[i])``, ``matmul(rows, weight[i])`` or ``rows @ weight[i]``."""
    layout = WeightLayout.IN_OUT
    if isinstance(product, cst.Call) and len(product.args) == 2:
        if dotted(product.func) in LINEAR:
            layout = WeightLayout.OUT_IN
        elif dotted(product.func) != "torch.matmul":
            return None
        left, right = (a.value for a in product.args)
    elif isinstance(product, cst.BinaryOperation) and isinstance(product.operator, cst.MatrixMultiply):
        left, right = product.left, product.right
    else:
        return None
    if not left.deep_equals(rows) or not isinstance(right, cst.Subscript) or code(right.slice[0].slice) != index:
        return None
    return (right.value, layout) if len(right.slice) == 1 else None


def _whole(rows: cst.BaseExpression) -> cst.BaseExpression | None:
    return rows.value if isinstance(rows, cst.Subscript) else None


def _only_read_in(name: str, lines: list[cst.BaseStatement], inside: list[cst.BaseStatement]) -> bool:
    return all(name not in names(line) for line in lines if line not in inside)


def _inlined(node: Node, known: dict[str, cst.BaseExpression]) -> Node:
    """The node with local names replaced by what they were bound to; a target stays a name."""
    if isinstance(node, cst.Name):
        return known.get(node.value, node)  # type: ignore[return-value]
    reads: dict[cst.CSTNode, Replacement] = {
        n: known[n.value].deep_clone() for n in find(node, cst.Name) if n.value in known and not _is_label(node, n)
    }
    return replaced(node, reads)


def _is_label(tree: cst.CSTNode, name: cst.Name) -> bool:
    """Whether the name is an attribute's or a keyword's, which no variable is."""
    return any(a.attr is name for a in find(tree, cst.Attribute)) or any(a.keyword is name for a in find(tree, cst.Arg))
