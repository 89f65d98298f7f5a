"""The page's data: plain lists and numbers. A line of text is stored once, however many families have it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from codegen.comparison.rows import Kind, Line, Row

SAME, LAYOUT, CHANGED = 0, 1, 2
_KINDS = {Kind.LAYOUT: LAYOUT, Kind.CHANGED: CHANGED}


class Table:
    """Values by number, each once, in the order in which they came."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._numbers: dict[Any, int] = {}

    def number(self, value: Any) -> int:
        if value not in self._numbers:
            self._numbers[value] = len(self.values)
            self.values.append(value)
        return self._numbers[value]


class Encoder:
    """Rows become blocks. Equal lines that follow each other are one block, ``[SAME, left number, right number, line,
    ...]``; any other row is ``[kind, left number, left line, right number, right line, rules, left spans, right
    spans]``, with number 0 for a side that has no line, and empty spans at the end left out."""

    def __init__(self) -> None:
        self.lines = Table()
        self.rules = Table()  # tuples of rule ids

    def rows(self, rows: Iterable[Row]) -> list[list[Any]]:
        blocks: list[list[Any]] = []
        expected = (0, 0)
        for row in rows:
            left, right = row.left, row.right
            if row.kind is Kind.SAME and left is not None and right is not None:
                if (left.number, right.number) != expected or not blocks or blocks[-1][0] != SAME:
                    blocks.append([SAME, left.number, right.number])
                blocks[-1].append(self.lines.number(left.text))
                expected = (left.number + 1, right.number + 1)
                continue
            rules = self.rules.number(tuple(name for name in row.by if name))
            block = [_KINDS[row.kind], *self._side(left), *self._side(right), rules]
            spans = [_flat(left), _flat(right)]
            if _is_marked(left) and _is_marked(right):
                spans = []
            while spans and not spans[-1]:
                spans.pop()
            blocks.append(block + spans)
        return blocks

    def _side(self, line: Line | None) -> tuple[int, int]:
        return (0, 0) if line is None else (line.number, self.lines.number(line.text))

    def text(self, value: str) -> int:
        return self.lines.number(value)


def _is_marked(line: Line | None) -> bool:
    """Whether the whole line differs, as one that is not there does: then no part of it is worth marking."""
    return line is None or line.spans == ((len(line.text) - len(line.text.lstrip()), len(line.text)),)


def _flat(line: Line | None) -> list[int]:
    return [] if line is None else [column for span in line.spans for column in span]


def changed_lines(rows: Iterable[Row]) -> tuple[int, int]:
    """How many lines of the left and of the right text differ in more than layout."""
    changed = [row for row in rows if row.kind is Kind.CHANGED]
    return sum(r.left is not None for r in changed), sum(r.right is not None for r in changed)
