"""Which token of a text is which token of an older text: by logical lines first, then inside those that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from codegen.comparison.tokens import Piece, Token

Pairs = list[int | None]
"""For each token of the newer text the index of the same token in the older one, None when it is new."""


def align(old: Piece, new: Piece) -> Pairs:
    """Layout plays no part: how lines are broken and indented, how a string is quoted, a comma at the end."""
    pairs: Pairs = [None] * len(new.tokens)
    starts, ends = _starts(old), _starts(new)
    for kind, a, b, c, d in SequenceMatcher(None, old.keys, new.keys, autojunk=False).get_opcodes():
        if kind == "equal":
            for one, other in zip(range(a, b), range(c, d), strict=True):
                found = _same(old.statements[one], new.statements[other])
                _note(pairs, found, starts[one], ends[other])
        elif kind == "replace":
            ours, theirs = old.tokens[starts[a] : starts[b]], new.tokens[ends[c] : ends[d]]
            _note(pairs, _similar(ours, theirs), starts[a], ends[c])
    return pairs


def _starts(text: Piece) -> list[int]:
    """The index of each statement's first token, and of the text's end."""
    result = [0]
    for statement in text.statements:
        result.append(result[-1] + len(statement))
    return result


def _note(pairs: Pairs, found: Iterator[tuple[int, int]], old: int, new: int) -> None:
    for one, other in found:
        pairs[new + other] = old + one


def _same(old: Sequence[Token], new: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """Two statements that differ in punctuation at most: what is none is the same one by one, and between two of these
    punctuation is compared."""
    i = j = 0
    ours = [index for index, token in enumerate(old) if not token.is_punctuation]
    theirs = [index for index, token in enumerate(new) if not token.is_punctuation]
    for a, b in zip([*ours, len(old)], [*theirs, len(new)], strict=True):
        runs = [t.text for t in old[i:a]], [t.text for t in new[j:b]]
        for c, d, length in SequenceMatcher(None, *runs, autojunk=False).get_matching_blocks() if all(runs) else ():
            yield from ((i + c + k, j + d + k) for k in range(length))
        if a < len(old):
            yield a, b
        i, j = a + 1, b + 1


def _similar(old: Sequence[Token], new: Sequence[Token]) -> Iterator[tuple[int, int]]:
    """What two runs of statements share: how they begin and end, and between that what is no single bracket or comma,
    which they share by chance."""
    ours, theirs = [t.meaning for t in old], [t.meaning for t in new]
    head = tail = 0
    shorter = min(len(ours), len(theirs))
    while head < shorter and ours[head] == theirs[head]:
        yield head, head
        head += 1
    while tail < shorter - head and ours[-1 - tail] == theirs[-1 - tail]:
        tail += 1
        yield len(ours) - tail, len(theirs) - tail
    middle = ours[head : len(ours) - tail], theirs[head : len(theirs) - tail]
    for a, b, length in SequenceMatcher(None, *middle, autojunk=False).get_matching_blocks():
        if any(token.is_word for token in old[head + a : head + a + length]):
            yield from ((head + a + k, head + b + k) for k in range(length))
