"""Two texts side by side: lines that belong together in one row, with the parts that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from codegen.comparison.alignment import Pairs, align
from codegen.comparison.tokens import Piece, Token

Marks = Sequence[tuple[str, ...]]
"""For each token of a text who changed it; nothing for one that is as it was."""

Spans = tuple[tuple[int, int], ...]
"""Columns from and to which a line differs, as slices."""


class Kind(Enum):
    SAME = "same"
    LAYOUT = "layout"  # the same tokens on other lines
    CHANGED = "changed"


@dataclass(frozen=True)
class Line:
    number: int
    text: str
    spans: Spans = ()


@dataclass(frozen=True)
class Row:
    """``by`` names who made the difference, in their order."""

    kind: Kind
    left: Line | None
    right: Line | None
    by: tuple[str, ...] = ()


def compared(old: Piece, new: Piece) -> list[Row]:
    """Two texts of which nothing is known but what they say."""
    pairs = align(old, new)
    kept = {index for index in pairs if index is not None}
    left = [() if index in kept else ("",) for index in range(len(old.tokens))]
    return rows(old, new, pairs, left, [() if index is not None else ("",) for index in pairs])


def added(new: Piece, by: str) -> list[Row]:
    """A text that stands beside nothing."""
    return [Row(Kind.CHANGED, None, Line(n, text), (by,)) for n, text in zip(new.numbers, new.lines, strict=True)]


def rows(old: Piece, new: Piece, pairs: Pairs, left: Marks, right: Marks) -> list[Row]:
    """``pairs`` says which tokens are the same, ``left`` and ``right`` who removed and who made the others."""
    result: list[Row] = []
    left_by, right_by = _by_line(old, left), _by_line(new, right)
    left_spans, right_spans = _spans(old, left), _spans(new, right)
    for one, other in _beside(old, new, pairs):
        before = None if one is None else Line(old.numbers[one], old.lines[one], left_spans[one])
        after = None if other is None else Line(new.numbers[other], new.lines[other], right_spans[other])
        names = (left_by[one] if one is not None else ()) + (right_by[other] if other is not None else ())
        by = tuple(dict.fromkeys(names))
        same = before is not None and after is not None and before.text == after.text
        kind = Kind.CHANGED if by else Kind.SAME if same else Kind.LAYOUT
        result.append(Row(kind, before, after, by))
    return result


def _by_line(text: Piece, marks: Marks) -> list[tuple[str, ...]]:
    result: list[tuple[str, ...]] = [()] * len(text.lines)
    for token, names in zip(text.tokens, marks, strict=True):
        for line in range(token.start[0], token.end[0] + 1) if names else ():
            result[line] = tuple(dict.fromkeys((*result[line], *names)))
    return result


def _spans(text: Piece, marks: Marks) -> list[Spans]:
    """Marked tokens that stand side by side are one span."""
    result: list[list[tuple[int, int]]] = [[] for _ in text.lines]
    previous: Token | None = None
    for token, names in zip(text.tokens, marks, strict=True):
        if names:
            for line in range(token.start[0], token.end[0] + 1):
                start = token.start[1] if line == token.start[0] else 0
                end = token.end[1] if line == token.end[0] else len(text.lines[line])
                if previous is not None and line == previous.end[0] and result[line]:
                    start = result[line].pop()[0]
                result[line].append((start, end))
        previous = token if names else None
    return [tuple(spans) for spans in result]


def _beside(old: Piece, new: Piece, pairs: Pairs) -> list[tuple[int | None, int | None]]:
    """Lines of both texts in order; lines that share tokens stand beside each other, as many as can."""
    result: list[tuple[int | None, int | None]] = []
    i = j = 0
    weights = _shared(old, new, pairs)
    kept, known = {one for one, _ in weights}, {other for _, other in weights}
    for a, b in [*_chain(weights), (len(old.lines), len(new.lines))]:
        result += _gap(old, new, range(i, a), range(j, b), kept, known)
        if (a, b) != (len(old.lines), len(new.lines)):
            result.append((a, b))
        i, j = a + 1, b + 1
    return result


def _shared(old: Piece, new: Piece, pairs: Pairs) -> Counter[tuple[int, int]]:
    """How many tokens two lines share; punctuation counts for little."""
    weights: Counter[tuple[int, int]] = Counter()
    for token, index in zip(new.tokens, pairs, strict=True):
        if index is not None:
            weights[old.tokens[index].start[0], token.start[0]] += 1 if token.is_punctuation else 4
    for one, other in weights:
        if old.lines[one] == new.lines[other]:
            weights[one, other] += 2
    return weights


def _chain(weights: Counter[tuple[int, int]]) -> list[tuple[int, int]]:
    """The heaviest list of pairs in which both lines rise."""
    order = sorted(weights)
    best: list[tuple[int, int]] = []  # weight of the heaviest chain that ends with a pair, and the pair before it
    for index, (i, j) in enumerate(order):
        before = (0, -1)
        for k in range(index):
            if order[k][0] < i and order[k][1] < j and best[k][0] > before[0]:
                before = (best[k][0], k)
        best.append((before[0] + weights[i, j], before[1]))
    result = []
    at = max(range(len(best)), key=lambda k: best[k][0], default=-1)
    while at >= 0:
        result.append(order[at])
        at = best[at][1]
    return result[::-1]


def _gap(
    old: Piece, new: Piece, left: range, right: range, kept: set[int], known: set[int]
) -> list[tuple[int | None, int | None]]:
    """Lines that found no partner. Equal ones at both ends stand together (blank ones, brackets); between these, what
    is wholly gone beside what is wholly new. ``kept`` and ``known`` are lines that hold a token of the other text."""
    head = tail = 0
    shorter = min(len(left), len(right))
    while head < shorter and old.lines[left[head]].strip() == new.lines[right[head]].strip():
        head += 1
    while tail < shorter - head and old.lines[left[-1 - tail]].strip() == new.lines[right[-1 - tail]].strip():
        tail += 1
    result: list[tuple[int | None, int | None]] = list(zip(left[:head], right[:head], strict=True))
    ours, theirs = list(left[head : len(left) - tail]), list(right[head : len(right) - tail])
    while ours or theirs:
        if theirs and (theirs[0] in known or not ours):
            result.append((None, theirs.pop(0)))
        elif ours and (ours[0] in kept or not theirs):
            result.append((ours.pop(0), None))
        else:
            result.append((ours.pop(0), theirs.pop(0)))
    return result + list(zip(left[len(left) - tail :], right[len(right) - tail :], strict=True))
