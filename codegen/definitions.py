"""What a file defines at its top level, each definition parsed with LibCST when it is first looked at.

The standard library's parser reads a file in a tenth of the time; it says where every definition stands. A modeling
file holds about twice as much as its causal LM needs.
"""

from __future__ import annotations

import ast
import io
from collections.abc import Iterator, Mapping
from typing import TypeVar

import libcst as cst

from codegen.diagnostics import Refused, Span, damaged
from codegen.syntax import assignment

Definition = TypeVar("Definition", cst.ClassDef, cst.FunctionDef)


def first_line(node: ast.stmt) -> int:
    """Where a statement begins, its decorators included; counted from 1."""
    decorators = getattr(node, "decorator_list", ())
    lines: list[int] = [node.lineno, *(d.lineno for d in decorators)]
    return min(lines)


class Text:
    """A file's path and lines."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.lines = list(io.StringIO(text, newline=""))  # as Python counts them: a form feed ends none

    def statement(self, first: int, after: int, column: int) -> cst.CSTNode:
        """The statement on the lines from ``first`` to the one before ``after``, which begins at ``column``.

        Raises Refused when LibCST cannot parse what Python can."""
        text = "".join(self.lines[first - 1 : after - 1])
        try:
            if not column:
                return cst.parse_module(text).body[0]
            outer = cst.parse_module(f"if True:\n{text}").body[0]
        except cst.ParserSyntaxError as error:
            where = Span(self.path, first + error.raw_line - 1, error.raw_column + 1)
            raise Refused(damaged(where, "Python source", f"a syntax error: {error.message}")) from None
        assert isinstance(outer, cst.If)
        return outer.body.body[0]


class Definitions(Mapping[str, Definition]):
    """Classes or functions by name, in the order of the file; a name defined twice means the later definition."""

    def __init__(self, source: Text, kind: type[Definition]) -> None:
        self._source = source
        self._kind: type[Definition] = kind
        self._places: dict[str, tuple[int, int, int]] = {}
        self._parsed: dict[str, Definition] = {}

    def add(self, node: ast.ClassDef | ast.FunctionDef, after: int) -> None:
        """A definition of the file; ``after`` is the line on which what follows it begins."""
        self._places[node.name] = (first_line(node), after, node.col_offset)

    def mentions(self, name: str, word: str) -> bool:
        """Whether the text of a definition holds the word, parsed or not."""
        first, after, _ = self._places[name]
        return any(word in line for line in self._source.lines[first - 1 : after - 1])

    def __getitem__(self, name: str) -> Definition:
        if name not in self._parsed:
            found = self._source.statement(*self._places[name])
            assert isinstance(found, self._kind)
            self._parsed[name] = found
        return self._parsed[name]

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Values(Mapping[str, cst.BaseExpression]):
    """Names that are assigned one value at the top level, and the expression."""

    def __init__(self, source: Text) -> None:
        self._source = source
        self._nodes: dict[str, ast.stmt] = {}

    def add(self, node: ast.stmt) -> None:
        """A statement of the file; anything but ``name = value`` is passed over."""
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and len(targets) == 1 and isinstance(targets[0], ast.Name):
            if node.value is not None:
                self._nodes[targets[0].id] = node

    def __getitem__(self, name: str) -> cst.BaseExpression:
        node = self._nodes[name]
        bound = assignment(self._source.statement(node.lineno, (node.end_lineno or node.lineno) + 1, node.col_offset))
        assert bound is not None
        return bound[1]

    def __contains__(self, name: object) -> bool:
        return name in self._nodes

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)
