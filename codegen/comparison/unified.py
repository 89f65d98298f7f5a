"""Variants against upstream as a unified diff; behind each hunk's place the method and the rules that made it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from codegen.comparison.rows import Kind, Line, Row
from codegen.comparison.variants import ClassView, MethodView

CONTEXT = 2


@dataclass(frozen=True)
class FamilyVariants:
    """``path`` is upstream's file, ``file`` the generated one; both as reports name them."""

    path: str
    file: str
    classes: tuple[ClassView, ...]


class Sign(Enum):
    SAME = " "
    GONE = "-"
    COME = "+"


def unified(found: FamilyVariants, cls: ClassView) -> Iterator[str]:
    """The lines of one class or function, as ``diff -u`` writes them; none when nothing differs."""
    for number, (method, rows) in enumerate(sections(cls)):
        if number == 0:
            yield from heading(found, cls)
        yield section(method, rows)
        yield from (sign.value + line.text for sign, line in hunk_lines(rows))


def heading(found: FamilyVariants, cls: ClassView) -> tuple[str, str]:
    variant = cls.variant if "." in cls.variant else f"{found.file}:{cls.variant}"
    return f"--- upstream/{found.path}:{cls.upstream}", f"+++ {variant}"


def sections(cls: ClassView) -> Iterator[tuple[MethodView, list[Row]]]:
    """The hunks of every method."""
    for method in (*cls.methods, *cls.extra):
        for rows in hunks(method.rows, CONTEXT):
            yield method, rows


def section(method: MethodView, rows: Sequence[Row]) -> str:
    """``@@ -12,3 +14,5 @@ Class.method: rule, rule``."""
    left = [row.left for row in rows if row.left is not None]
    right = [row.right for row in rows if row.right is not None]
    rules = ", ".join(dict.fromkeys(name for row in rows for name in row.by))
    return f"@@ -{_range(left)} +{_range(right)} @@ {method.where}" + (f": {rules}" if rules else "")


def _range(lines: Sequence[Line]) -> str:
    return f"{lines[0].number if lines else 0},{len(lines)}"


def hunk_lines(rows: Sequence[Row]) -> Iterator[tuple[Sign, Line]]:
    """What is gone comes before what has come, change by change."""
    come: list[Line] = []
    for row in rows:
        if row.left is not None and row.right is not None and row.left.text == row.right.text:
            yield from ((Sign.COME, line) for line in come)
            come = []
            yield Sign.SAME, row.right
            continue
        if row.left is not None:
            yield Sign.GONE, row.left
        if row.right is not None:
            come.append(row.right)
    yield from ((Sign.COME, line) for line in come)


def hunks(rows: Sequence[Row], context: int) -> list[list[Row]]:
    """The runs of rows around changes, with a few unchanged ones at both ends; no run when nothing changed."""
    near = [False] * len(rows)
    for index, row in enumerate(rows):
        if row.kind is not Kind.SAME:
            for k in range(max(index - context, 0), min(index + context + 1, len(rows))):
                near[k] = True
    result: list[list[Row]] = []
    for index, row in enumerate(rows):
        if near[index]:
            if index == 0 or not near[index - 1]:
                result.append([])
            result[-1].append(row)
    return result
