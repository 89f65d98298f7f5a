"""What no rule may do is refused before anything is written, whatever the rule."""

import libcst as cst
import pytest

from codegen.derive import written
from codegen.diagnostics import Diagnostic, Refused
from codegen.syntax import code
from codegen.targets import TARGETS
from codegen.targets.base import Target
from codegen.upstream import UpstreamModule
from codegen.verify import checked_text, problems

SOURCE = """
class Base:
    def helper(self, x):
        return x


class Case(Base):
    def forward(self, x, mask=None, labels=None, *, flag=False, **kwargs):
        return x


def attend(query, key):
    return query
"""
GONE = {"labels": "there is no loss"}
FORWARD = "Case.forward"


def _found(where: str, text: str) -> list[tuple[str, str]]:
    node = cst.parse_statement(text)
    assert isinstance(node, cst.FunctionDef)
    return [(p.rule, p.found) for p in problems(UpstreamModule("models/case.py", SOURCE), [(where, node)], GONE)]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (FORWARD, "def forward(self, x, mask=None, *, flag=False, **kwargs): ..."),
        (FORWARD, "def forward(self, x, mask=None, position_ids=None, flag=False, **kwargs): ..."),
        ("Case.helper", "def helper(self, x, position_ids=None): ..."),
        ("attend", "def attend(query, key, position_ids=None): ..."),
    ],
)
def test_what_upstreams_callers_can_still_call(where: str, text: str) -> None:
    assert _found(where, text) == []


@pytest.mark.parametrize(
    ("where", "text", "rule", "found"),
    [
        (FORWARD, "def forward(self, x, mask=None, labels=None, flag=False, **k): ...", "verify/leftover", "it is in"),
        (FORWARD, "def forward(self, mask=None, x=None, flag=False, **k): ...", "verify/signature", "mask, x, flag"),
        (FORWARD, "def forward(self, x, flag=False, **k): ...", "verify/signature", "self, x, flag"),
        (FORWARD, "def forward(self, p=None, x=None, mask=None, flag=False, **k): ...", "verify/signature", "self, p"),
        (FORWARD, "def forward(self, x, mask=None, **k): ...", "verify/signature", "none in"),
        (FORWARD, "def forward(self, x, mask=None, flag=False): ...", "verify/signature", "none in"),
        (FORWARD, "def forward(self, x, mask, flag=False, **k): ...", "verify/signature", "mask in"),
        (FORWARD, "def forward(self, x, mask=None, *, flag=False, new, **k): ...", "verify/signature", "new in"),
        ("Case.other", "def other(self): ...", "verify/override", "Case.other"),
        ("other", "def other(): ...", "verify/override", "other"),
    ],
)
def test_what_they_cannot(where: str, text: str, rule: str, found: str) -> None:
    ((id, said),) = _found(where, text)
    assert id == rule and found in said


def test_text_that_is_not_python() -> None:
    assert checked_text("models/case.py", "x = 1\n") == "x = 1\n"
    with pytest.raises(Refused, match=r"verify/syntax.*outside function"):
        checked_text("models/case.py", "return 1\n")


DECORATED = """
def unheard_of(function):
    return function


class Case:
    {decorator}
    def forward(self, x):
        return super().forward(x)
"""


@pytest.mark.parametrize(
    ("decorator", "kept"),
    [
        ("@auto_docstring", ""),
        ("@auto_docstring(custom_intro='x')", ""),
        ("@capture_outputs", "capture_outputs"),
        ("@capture_outputs(tie_last_hidden_states=False)", "capture_outputs(tie_last_hidden_states=False)"),
    ],
)
def test_decorators_a_target_knows(decorator: str, kept: str) -> None:
    node, diagnostics = _decorated(decorator, TARGETS["rmpad"])
    assert diagnostics == []
    assert [code(d.decorator) for d in node.decorators] == ([kept] if kept else [])


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_a_decorator_that_a_target_does_not_know_refuses_the_family(target: Target) -> None:
    _, (problem,) = _decorated("@unheard_of(1)", target)
    assert problem.rule == "derive/decorator" and problem.span.line == 7
    assert problem.found == "@unheard_of(1) on Case.forward" and "auto_docstring" in problem.expected


def _decorated(decorator: str, target: Target) -> tuple[cst.FunctionDef, list[Diagnostic]]:
    module = UpstreamModule("models/case.py", DECORATED.replace("{decorator}", decorator))
    function = module.method("Case", "forward")
    assert function is not None
    diagnostics: list[Diagnostic] = []
    node = written(module, "Case", function.node, target, diagnostics)
    return node, diagnostics
