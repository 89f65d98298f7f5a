"""Which rule made each token of a variant, and which removed each token of upstream's method.

A method is followed through the states in which the pipeline left it, rule by rule; the last state is compared with the
text that was written.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import libcst as cst

from codegen.comparison.alignment import align
from codegen.comparison.rows import Row, rows
from codegen.comparison.tokens import Piece, piece
from codegen.derive import AppliedEdit, decorator_name, with_named_super
from codegen.syntax import code, docstring_removed

DECORATORS = "emit/decorators"
SUPER = "emit/super"
RUNTIME = "emit/runtime"
EXTRA = "emit/extra"
UNEXPLAINED = "unexplained"

WHY = {
    DECORATORS: "a variant keeps of upstream's decorators those that it needs; the target says of each why it may go",
    SUPER: "super() still means the base of the class that upstream's method was written in",
    RUNTIME: "the runtime has this function; there it is annotated and laid out in its own way",
    EXTRA: "what the engine asks of a variant, and upstream's class has not",
    UNEXPLAINED: "no rule made this: the file is edited by hand, or is not of this compiler; see regraft check",
}


@dataclass(frozen=True)
class Step:
    """What a rule left of the method. ``names`` are those that stayed and mean something else from here on."""

    rule: str
    after: str
    names: frozenset[str] = frozenset()


def steps(
    function: cst.FunctionDef, final: cst.FunctionDef, owner: str, kept: frozenset[str], edits: Sequence[AppliedEdit]
) -> list[Step]:
    """The way from upstream's method to the one that is emitted, by the edits that were made in it."""
    undecorated = _undecorated(_bare(function), kept)
    result = [Step(DECORATORS, code(undecorated)), Step(SUPER, _state(function, owner, kept))]
    runs = list(_runs(edits))
    for index, (rule, made) in enumerate(runs):
        after = _state(runs[index + 1][1][0].function, owner, kept) if index + 1 < len(runs) else code(_bare(final))
        rebound = frozenset(code(e.node) for e in made if isinstance(e.node, cst.Name) and e.before != code(e.node))
        result.append(Step(rule, after, rebound))
    return result


def _runs(edits: Sequence[AppliedEdit]) -> Iterator[tuple[str, list[AppliedEdit]]]:
    """Edits that one rule made at one time."""
    current: list[AppliedEdit] = []
    for edit in edits:
        if current and (edit.rule, edit.function) != (current[0].rule, current[0].function):
            yield current[0].rule, current
            current = []
        current.append(edit)
    if current:
        yield current[0].rule, current


def _bare(function: cst.FunctionDef) -> cst.FunctionDef:
    """Without what nobody compares: docstring, and comments in front. Printing is dear, and is remembered by node: what
    needs no change stays the same node."""
    bare = docstring_removed(function)
    return bare.with_changes(leading_lines=[]) if bare.leading_lines else bare


def _undecorated(function: cst.FunctionDef, kept: frozenset[str]) -> cst.FunctionDef:
    decorators = [d for d in function.decorators if decorator_name(d) in kept]
    return function if len(decorators) == len(function.decorators) else function.with_changes(decorators=decorators)


def _state(function: cst.FunctionDef, owner: str, kept: frozenset[str]) -> str:
    return code(_undecorated(_bare(with_named_super(function, owner)), kept))


@dataclass
class _State:
    """A text on the way, and of each of its tokens where it is upstream and who made it."""

    text: Piece
    origin: list[int | None]
    by: list[tuple[str, ...]]


def lineage(upstream: Piece, way: Sequence[Step], written: Piece, last: str = UNEXPLAINED) -> list[Row]:
    """Upstream's method beside the one that was written, each difference with the rules that made it; what none of
    them made is by ``last``. Raises SyntaxError when a text is not Python."""
    state = _State(upstream, list(range(len(upstream.tokens))), [()] * len(upstream.tokens))
    gone: list[tuple[str, ...]] = [()] * len(upstream.tokens)
    for step in way:
        state = _advance(state, piece(step.after), step, gone)
    if not _says_the_same(state.text, written):
        from codegen.emit.layout import formatted  # black takes a while to import

        text = "\n".join(state.text.lines)
        state = _advance(state, piece(formatted(text) if way else text), Step("", ""), gone)
    else:
        last = ""
    end = _advance(state, written, Step(last, ""), gone)
    left = [tuple(rule for rule in by if rule) for by in gone]
    right = [tuple(rule for rule in by if rule) for by in end.by]
    return rows(upstream, written, end.origin, left, right)


def _advance(state: _State, text: Piece, step: Step, gone: list[tuple[str, ...]]) -> _State:
    if text.lines == state.text.lines and not step.names:
        return state
    pairs = align(state.text, text)
    kept = {index for index in pairs if index is not None}
    lost: list[list[str]] = [[]]  # who made the tokens that were removed, between one kept token and the next
    gap_after: dict[int, int] = {}
    for old, by in enumerate(state.by):
        if old in kept:
            lost.append([])
        else:
            lost[-1] += by
            at = state.origin[old]
            if at is not None:
                gone[at] = (*by, step.rule)
        gap_after[old] = len(lost) - 1
    result = _State(text, [], [])
    gap = 0
    for token, index in zip(text.tokens, pairs, strict=True):
        if index is not None:
            gap = gap_after[index]
            by = state.by[index]
            if token.text in step.names and step.rule not in by:
                by = (*by, step.rule)
            result.origin.append(state.origin[index])
            result.by.append(by)
        else:
            result.origin.append(None)
            result.by.append(tuple(dict.fromkeys((*lost[gap], step.rule))))
    return result


def _says_the_same(one: Piece, other: Piece) -> bool:
    """Whether two texts differ in layout alone."""
    return _tree(one) == _tree(other)


def _tree(text: Piece) -> str:
    indented = text.lines[0][:1].isspace()
    body = "\n".join(text.lines)
    (node,) = ast.parse(f"class _:\n{body}" if indented else body).body
    return ast.dump(node.body[0] if indented and isinstance(node, ast.ClassDef) else node)
