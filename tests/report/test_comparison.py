"""Side by side: which tokens are the same, who made the others, which lines stand in one row."""

from pathlib import Path

import pytest

from codegen.comparison import lineage
from codegen.comparison.alignment import align
from codegen.comparison.lineage import Step
from codegen.comparison.rows import Kind, Row, compared
from codegen.comparison.tokens import piece
from codegen.comparison.unified import hunks
from codegen.comparison.variants import ClassView, Written, class_views
from codegen.driver import Compiled
from codegen.emit import manifest
from codegen.emit.extras import class_name
from codegen.generation import module_path
from codegen.source import installed
from codegen.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated"
# An own eager attention function, one of the runtime, stacked experts, an encoder beside, a class that inherits.
SHOWN = ("llama", "bart", "mixtral", "gpt_oss", "gemma2", "bloom")


def _shown(rows: list[Row]) -> list[tuple[str, str, str, str]]:
    return [
        (
            row.kind.value,
            row.left.text if row.left is not None else "",
            row.right.text if row.right is not None else "",
            " ".join(row.by),
        )
        for row in rows
    ]


def test_layout_is_no_change() -> None:
    old = piece("def f(a):\n    return g(a, b='x')  # why\n")
    new = piece('def f(a):\n    return g(\n        a,\n        b="x",\n    )  # why\n')
    pairs = align(old, new)
    assert [t.text for t, index in zip(new.tokens, pairs, strict=True) if index is None] == [","]
    assert [row.kind for row in compared(piece("x = f(1)"), piece("x = f(\n    1\n)"))] == [Kind.LAYOUT] * 3


def test_a_change_is_marked_where_it_is() -> None:
    (row,) = compared(piece("x = f(a, b)"), piece("x = g(a, b, c)"))
    assert row.left is not None and row.right is not None and row.kind is Kind.CHANGED
    assert [row.left.text[slice(*span)] for span in row.left.spans] == ["f"]
    assert [row.right.text[slice(*span)] for span in row.right.spans] == ["g", ", c"]


def test_brackets_alone_are_shared_by_chance() -> None:
    rows = compared(piece("a = b(c)"), piece("if d(e): f()"))
    assert all(not row.left or not row.right or row.kind is Kind.CHANGED for row in rows)
    assert all(index is None for index in align(piece("x(y)"), piece("z(w) + q")))


def test_text_that_is_no_python_is_compared_line_by_line() -> None:
    rows = compared(piece("def f(:\n  '''a\nsame"), piece("def f(:\n  '''b\nsame"))
    assert [row.kind for row in rows] == [Kind.SAME, Kind.CHANGED, Kind.SAME]


def test_strings_over_several_lines() -> None:
    rows = compared(piece('x = """a\nb\nc"""\ny = 1'), piece('x = """a\nB\nc"""\ny = 1'))
    assert [row.kind for row in rows][-1] is Kind.SAME
    assert any(row.right is not None and row.right.text == "B" for row in rows)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment", "x = 1"])
def test_a_text_equals_itself(text: str) -> None:
    assert all(row.kind is Kind.SAME for row in compared(piece(text), piece(text)))
    assert not hunks(compared(piece(text), piece(text)), 3)


def test_a_text_that_came_or_went() -> None:
    came = compared(piece("x = 1"), piece("x = 1\ny = 2\nz = 3"))
    assert [(row.left is None, row.right is None) for row in came] == [(False, False), (True, False), (True, False)]
    went = compared(piece("x = 1\ny = 2"), piece(""))
    assert all(row.left is not None for row in went if row.kind is Kind.CHANGED)


def test_hunks() -> None:
    old = piece("\n".join(f"x{n} = {n}" for n in range(30)))
    new = piece("\n".join(f"x{n} = {0 if n in (3, 20) else n}" for n in range(30)))
    found = hunks(compared(old, new), 2)
    assert [[row.left.number for row in hunk if row.left] for hunk in found] == [[2, 3, 4, 5, 6], [19, 20, 21, 22, 23]]
    assert len(hunks(compared(old, new), 8)) == 1


# ------------------------------------------------------------------------------------------------------------- lineage

UPSTREAM = "def f(self, a):\n    b = a + 1\n    return self.g(b)\n"


def _rows(way: list[Step], written: str) -> list[tuple[str, str, str, str]]:
    return [row for row in _shown(lineage.lineage(piece(UPSTREAM), way, piece(written))) if row[0] != "same"]


def test_each_difference_is_by_the_rule_that_made_it() -> None:
    way = [
        Step("one", "def f(self, a, c):\n    b = a + 1\n    return self.g(b)\n"),
        Step("two", "def f(self, a, c):\n    return self.g(h(a))\n"),
    ]
    assert _rows(way, way[-1].after) == [
        ("changed", "def f(self, a):", "def f(self, a, c):", "one"),
        ("changed", "    b = a + 1", "", "two"),
        ("changed", "    return self.g(b)", "    return self.g(h(a))", "two"),
    ]


def test_what_one_rule_made_and_another_made_again() -> None:
    way = [
        Step("one", "def f(self, a):\n    b = plus(a)\n    return self.g(b)\n"),
        Step("two", "def f(self, a):\n    b = minus(a)\n    return self.g(b)\n"),
    ]
    assert _rows(way, way[-1].after) == [("changed", "    b = a + 1", "    b = minus(a)", "one two")]


def test_what_a_rule_made_and_another_took_back_is_no_change() -> None:
    way = [Step("one", UPSTREAM.replace("return", "x = 0\n    return")), Step("two", UPSTREAM)]
    assert _rows(way, UPSTREAM) == []


def test_a_name_that_means_something_else_is_a_change() -> None:
    way = [Step("one", UPSTREAM, frozenset({"g"}))]
    assert _rows(way, UPSTREAM) == [("changed", "    return self.g(b)", "    return self.g(b)", "one")]


def test_the_formatter_makes_no_change() -> None:
    written = "def f(\n    self,\n    a,\n):\n    b = (a + 1)\n    return self.g(b)\n"
    kinds = {row[0] for row in _rows([], written)}
    assert kinds == {"layout"}


def test_what_no_rule_made_is_unexplained() -> None:
    way = [Step("one", UPSTREAM.replace("a + 1", "a + 2"))]
    written = way[-1].after.replace("return", "b = 0\n    return")
    assert _rows(way, written) == [
        ("changed", "    b = a + 1", "    b = a + 2", "one"),
        ("changed", "", "    b = 0", "unexplained"),
    ]
    assert ("changed", "    b = a + 1", "    b = (a + 1) * 2", "unexplained") in _rows(
        [], UPSTREAM.replace("a + 1", "(a + 1) * 2")
    )
    (moved,) = _rows([Step("", UPSTREAM.replace("a + 1", "(a + 1) * 2"))], UPSTREAM.replace("a + 1", "a + (1 * 2)"))[:1]
    assert moved[0] == "changed", "brackets that mean something are no layout"


# ------------------------------------------------------------------------------------------------------ generated files


def _entries() -> list[Compiled]:
    remembered = manifest.read(GENERATED / manifest.NAME)
    assert remembered is not None
    return [entry.compiled for entry in remembered.entries.values() if entry.output]


def _views(one: Compiled) -> tuple[list[ClassView], list[str], list[str]]:
    upstream = installed().text(one.path)
    text = (GENERATED / module_path(one)).read_text("utf-8")
    heads = tuple((f.model_type, f.head) for f in one.generated)
    (classes,) = class_views(one.path, upstream, [Written(one.target, heads, text)])
    return classes, upstream.split("\n"), text.split("\n")


def _check(one: Compiled) -> None:
    """Both sides are the real texts, whole; every change has its rule; and the rules are those of the manifest."""
    classes, upstream, written = _views(one)
    recorded = {name: set(rules) for name, rules in one.rules}
    assert [cls.upstream for cls in classes if cls.role != "function"] == [
        name for name in recorded if name in {c.upstream for c in classes if c.role != "function"}
    ] or set(recorded) == {cls.upstream for cls in classes}
    assert {cls.upstream: set(cls.rules) for cls in classes} == recorded
    steps = {step.rule.id for step in TARGETS[one.target].steps}
    for cls in classes:
        runtime = cls.role == "function" and "." in cls.variant
        theirs = (
            (ROOT / (cls.variant.rpartition(".")[0].replace(".", "/") + ".py")).read_text("utf-8").split("\n")
            if runtime
            else written
        )
        named: set[str] = set()
        for method in (*cls.methods, *cls.extra):
            left = [row.left for row in method.rows if row.left is not None]
            right = [row.right for row in method.rows if row.right is not None]
            assert [line.text for line in left] == [upstream[line.number - 1] for line in left]
            assert [line.text for line in right] == [theirs[line.number - 1] for line in right]
            for lines in (left, right):
                assert [line.number for line in lines] == sorted({line.number for line in lines})
            if method in cls.methods and not runtime:
                first, last = right[0].number, right[-1].number
                assert len(right) == last - first + 1, "no line of a variant's method is left out"
            for row in method.rows:
                named |= set(row.by)
                assert lineage.UNEXPLAINED not in row.by
                if row.kind is Kind.CHANGED:
                    assert row.by
                elif row.kind is Kind.SAME:
                    assert row.left is not None and row.right is not None and row.left.text == row.right.text
                for line in (row.left, row.right):
                    assert line is None or all(0 <= a < b <= len(line.text) for a, b in line.spans)
        assert named & steps == set(cls.rules), "every rule of a class is beside a line"
        assert named <= set(cls.rules) | set(lineage.WHY)
        prefixed = class_name(TARGETS[one.target].prefix, cls.upstream)
        assert cls.variant == prefixed if cls.role != "function" else cls.upstream in cls.variant


@pytest.mark.parametrize("family", SHOWN)
@pytest.mark.parametrize("target", TARGETS)
def test_a_generated_file(family: str, target: str) -> None:
    found = [e for e in _entries() if e.target == target and family in {f.model_type for f in e.generated}]
    if not found:
        pytest.skip("refused")
    _check(found[0])


@pytest.mark.slow
@pytest.mark.parametrize("one", _entries(), ids=module_path)
def test_every_generated_file(one: Compiled) -> None:
    _check(one)
