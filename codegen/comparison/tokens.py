"""A piece of Python as tokens and logical lines, by Python's own tokenizer."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

_SKIPPED = {tokenize.ENCODING, tokenize.INDENT, tokenize.DEDENT, tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER}
_PUNCTUATION = {",", "(", ")"}  # what a formatter adds and takes away


@dataclass(frozen=True, slots=True)
class Token:
    """``start`` and ``end`` are (line, column), both from 0, in the piece; ``meaning`` is the text, of a string its
    value however it is quoted."""

    text: str
    meaning: str
    start: tuple[int, int]
    end: tuple[int, int]

    @property
    def is_punctuation(self) -> bool:
        return self.text in _PUNCTUATION

    @property
    def is_word(self) -> bool:
        return self.text[0].isalnum() or self.text[0] in "_\"'#"


@dataclass(frozen=True)
class Piece:
    """Lines of a file that are whole statements: ``numbers`` are their line numbers there, rising, from 1."""

    lines: tuple[str, ...]
    numbers: tuple[int, ...]

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        return tuple(token for statement in self.statements for token in statement)

    @cached_property
    def statements(self) -> tuple[tuple[Token, ...], ...]:
        """The tokens of each logical line; a comment on its own lines is one, too."""
        return _statements("\n".join(self.lines))

    @cached_property
    def keys(self) -> tuple[tuple[str, ...], ...]:
        """Of each logical line what it says, apart from commas and parentheses."""
        return tuple(tuple(t.meaning for t in s if not t.is_punctuation) for s in self.statements)


def piece(text: str) -> Piece:
    """A text of its own."""
    lines = text.split("\n")
    return Piece(tuple(lines), tuple(range(1, len(lines) + 1)))


@lru_cache(maxsize=512)
def _statements(text: str) -> tuple[tuple[Token, ...], ...]:
    found: list[tuple[Token, ...]] = []
    current: list[Token] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in _SKIPPED:
                (line, column), (last, end) = token.start, token.end
                current.append(Token(token.string, _meaning(token), (line - 1, column), (last - 1, end)))
            alone = token.type == tokenize.NL and all(t.text.startswith("#") for t in current)
            if current and (token.type == tokenize.NEWLINE or alone):
                found.append(tuple(current))
                current = []
    except (tokenize.TokenError, SyntaxError):  # an old text may be anything: then a line is as good as a token
        lines = enumerate(text.split("\n"))
        return tuple((Token(line, line.strip(), (n, 0), (n, len(line))),) for n, line in lines if line.strip())
    return (*found, tuple(current)) if current else tuple(found)


def _meaning(token: tokenize.TokenInfo) -> str:
    if token.type != tokenize.STRING:
        return token.string
    try:
        return repr(ast.literal_eval(token.string))
    except (ValueError, SyntaxError):  # with holes
        return token.string


def definition(lines: Sequence[str], node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> Piece:
    """The lines of a definition: from its first decorator to the last comment that is indented as its body is, without
    its docstring."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    last = node.end_lineno or node.lineno
    for number in range(last + 1, len(lines) + 1):
        line = lines[number - 1].strip()
        if line and not (line.startswith("#") and _indent(lines[number - 1]) > node.col_offset):
            break
        if line:
            last = number
    left_out: set[int] = set()
    if ast.get_docstring(node, clean=False) is not None and len(node.body) > 1:
        left_out = set(range(node.body[0].lineno, (node.body[0].end_lineno or node.body[0].lineno) + 1))
    numbers = tuple(n for n in range(first, last + 1) if n not in left_out)
    return Piece(tuple(lines[n - 1] for n in numbers), numbers)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
