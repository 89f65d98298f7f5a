"""Definitions parsed one by one are upstream's text, character by character."""

import ast
import io
from collections.abc import Iterator

import libcst as cst
import pytest

from codegen.definitions import first_line
from codegen.diagnostics import Refused
from codegen.discovery import discover
from codegen.source import installed
from codegen.upstream import UpstreamModule

MODELING = sorted({family.path for family in discover(installed())})


def _definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    """At the module's level, and under ``if`` there."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node
        elif isinstance(node, ast.If):
            yield from _definitions(node.body)


def _printed(node: cst.BaseStatement, column: int) -> str:
    """The statement as it stands in the file, at its column."""
    if not column:
        return cst.Module([node]).code
    block = cst.If(cst.Name("_"), cst.IndentedBlock([node], indent=" " * column))
    return cst.Module([block]).code.removeprefix("if _:\n")


def _compare(path: str, text: str) -> int:
    """How many definitions were compared."""
    module = UpstreamModule(path, text)
    lines = list(io.StringIO(text, newline=""))  # as Python counts them
    last = {node.name: node for node in _definitions(ast.parse(text).body)}  # of one defined twice, as Python has it
    assert {*module.classes, *module.functions} == set(last)
    for name, node in last.items():
        found = module.classes.get(name) or module.functions[name]
        assert found.name.value == name
        wanted = "".join(lines[first_line(node) - 1 : node.end_lineno])
        assert _printed(found, node.col_offset).strip("\n") == wanted.strip("\n"), f"{path}: {name}"
    return len(last)


def _under_if() -> list[str]:
    """The files that define something under a condition."""
    found = []
    for path in MODELING:
        text = installed().text(path)
        if "\nif " in text and any(node.col_offset for node in _definitions(ast.parse(text).body)):
            found.append(path)
    return found


@pytest.mark.parametrize("path", MODELING[::14])
def test_every_definition_is_upstreams_text(path: str) -> None:
    assert _compare(path, installed().text(path)) > 5


def test_definitions_under_a_condition_are_upstreams_text() -> None:
    paths = _under_if()
    assert paths, "no file of upstream has any"
    for path in paths:
        _compare(path, installed().text(path))


@pytest.mark.slow
def test_every_definition_of_every_file_is_upstreams_text() -> None:
    for path in MODELING:
        _compare(path, installed().text(path))


LAYOUTS = """# a comment above

@decorated
# between
@again(
    1,
)
def first(x):
    '''Text
that begins at the margin.'''
    return x  # at the end
# at the margin, of the next


class Second: pass
if True:
    def third():
        '''Text
that begins at the margin.'''

        return 1

    # of the next
    class Fourth(Second):

        # of the method
        def method(self): return \\
            2
    value = 3
def last(): return {
    1: 2}"""


@pytest.mark.parametrize("end", ["", "\n", "\n\n# a comment at the end\n"])
def test_layouts_that_upstream_does_not_have_today(end: str) -> None:
    assert _compare("models/case/modeling_case.py", LAYOUTS + end) == 5


def test_of_two_definitions_the_later_one_counts() -> None:
    text = "def f():\n    return 1\n\n\ndef f():\n    return 2\n"
    assert _compare("models/case/modeling_case.py", text) == 1


def test_lines_end_where_python_says() -> None:
    text = "def f():  # \u2028 \x0c \x1c\n    return 1\n\n\ndef g():\n    return 2\n"
    assert _compare("models/case/modeling_case.py", text) == 2


def test_a_file_without_a_statement_defines_nothing() -> None:
    for text in ("", "\n", "# a comment\n"):
        assert not _compare("models/case/modeling_case.py", text)


def test_python_that_is_unknown_to_the_parser_of_definitions_is_refused_with_its_place() -> None:
    module = UpstreamModule("models/case/modeling_case.py", "x = 1\n\ndef f():\n    return 1\n")
    module.functions._source.lines[3] = "    return (\n"
    with pytest.raises(Refused, match=r"models/case/modeling_case.py:[345]:\d+: .*syntax error"):
        module.functions["f"]
