"""Every rule does what its own cases say, does nothing to its own output, and has cases of both kinds."""

import inspect
import textwrap

import black
import libcst as cst
import pytest

from codegen.derive import derive
from codegen.diagnostics import Refused
from codegen.ir import Carrier, FamilyIR, Role
from codegen.recognize.carriers import carriers, reachable_classes
from codegen.recognize.family import recognize
from codegen.rules.base import Case, Edits, Match, NotApplicable, Refusal, Rule, Site, rewrite
from codegen.source import installed
from codegen.syntax import code, replaced
from codegen.targets import TARGETS
from codegen.upstream import UpstreamModule

MODE = black.Mode(line_length=119, magic_trailing_comma=False)
PATH = "models/case/modeling_case.py"
RULES = {step.rule.id: step.rule for target in TARGETS.values() for step in target.steps}
CASES = [(rule, case) for rule in RULES.values() for case in rule.cases]
REWRITES = [(rule, case) for rule, case in CASES if case.after is not None]


def _named(pairs: list[tuple[Rule, Case]]) -> list[object]:
    return [pytest.param(r, c, id=f"{r.id}-{number}-{c.where}") for number, (r, c) in enumerate(pairs)]


def _site(module: UpstreamModule, where: str, rule: Rule) -> Site:
    """The method as the pipeline would hand it to the rule: every class of the source is below the head."""
    cls, _, name = where.rpartition(".")
    head = next((c for c in reversed(list(module.classes)) if cls in reachable_classes(module, c)), cls)
    found = _carriers(module, head) if cls else ()
    family = FamilyIR(PATH, (("case", head),), found, tuple(module.classes))
    method = module.method(cls, name) if cls else None
    function = method.node if method is not None else module.functions[name]
    carrier = family.carrier(cls)
    preferred = carrier.role if carrier is not None and carrier.role in rule.roles else None
    role = preferred or min(rule.roles, key=lambda r: list(Role).index(r))
    return Site(module, family, cls, role, function, method.owner if method is not None else "")


def _carriers(module: UpstreamModule, cls: str) -> tuple[Carrier, ...]:
    try:
        return carriers(module, cls)
    except Refused:
        return ()  # nothing in this example writes a cache


def _formatted(text: str) -> str:
    return black.format_str(textwrap.dedent(text.strip("\n")), mode=MODE).strip()


def _method_text(function: cst.FunctionDef) -> str:
    return _formatted(cst.Module([function.with_changes(leading_lines=[])]).code)


@pytest.mark.parametrize(("rule", "case"), _named(CASES))
def test_case(rule: Rule, case: Case) -> None:
    site = _site(UpstreamModule(PATH, case.source), case.where, rule)
    before = _method_text(site.function)
    match = rule.match(site)
    assert _method_text(site.function) == before, "match() changed the method"
    if case.refuses is not None:
        assert isinstance(match, Refusal), match
        assert case.refuses in match.diagnostic.found
        _check_diagnostic(rule, case, match)
    elif case.after is None:
        assert isinstance(match, NotApplicable), match
    else:
        assert isinstance(match, Edits), match
        assert _method_text(rewrite(site.function, match)) == _formatted(case.after)


def _check_diagnostic(rule: Rule, case: Case, match: Refusal) -> None:
    """A refusal says where (a line inside the method), which rule, what was expected, and what to do."""
    diagnostic = match.diagnostic
    lines = len(case.source.splitlines())
    assert diagnostic.rule == rule.id
    assert diagnostic.span.path == PATH
    assert 1 <= diagnostic.span.line <= lines and diagnostic.span.column >= 1
    assert diagnostic.expected and diagnostic.help


@pytest.mark.parametrize(("rule", "case"), _named(REWRITES))
def test_a_rule_does_nothing_to_its_own_output(rule: Rule, case: Case) -> None:
    module = UpstreamModule(PATH, case.source)
    site = _site(module, case.where, rule)
    match = rule.match(site)
    assert isinstance(match, Edits)
    once = rewrite(site.function, match)
    again = UpstreamModule(PATH, _with(module, site, once))
    second = _site(again, case.where, rule)
    assert _outcome(second, rule.match(second)) == _method_text(once)


def _with(module: UpstreamModule, site: Site, new: cst.FunctionDef) -> str:
    """The module's text with the site's method rewritten; definitions are parsed one by one, so there is no tree."""
    definition = module.classes[site.owner] if site.owner else site.function
    before = code(definition)
    assert module.text.count(before) == 1
    return module.text.replace(before, code(replaced(definition, {site.function: new})))


def _outcome(site: Site, match: Match) -> str:
    assert not isinstance(match, Refusal), match.diagnostic
    return _method_text(rewrite(site.function, match) if isinstance(match, Edits) else site.function)


@pytest.mark.parametrize(("name", "head"), [("llama", "LlamaForCausalLM"), ("mixtral", "MixtralForCausalLM")])
def test_the_pipeline_does_nothing_to_its_own_output(name: str, head: str) -> None:
    path = f"models/{name}/modeling_{name}.py"
    module = UpstreamModule(path, installed().text(path))
    ir = recognize(module, ((name, head),))
    for target in TARGETS.values():
        emitted = derive(module, ir, target)
        assert emitted.variants
        for variant in emitted.variants:
            for method in variant.methods:
                for step in target.steps:
                    if variant.role in step.rule.roles:
                        site = Site(module, ir, variant.upstream, variant.role, method)
                        changed = _outcome(site, step.rule.match(site))
                        assert changed == _method_text(method), f"{step.rule.id} changes {variant.upstream} again"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_has_cases_of_both_kinds(rule: Rule) -> None:
    assert any(case.after is not None for case in rule.cases), "no case that rewrites"
    assert any(case.after is None for case in rule.cases), "no case that is skipped or refused"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_that_can_refuse_shows_a_refusal(rule: Rule) -> None:
    can_refuse = ".refusal(" in inspect.getsource(type(rule))
    assert can_refuse == any(case.refuses is not None for case in rule.cases)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule_says_what_and_why(rule: Rule) -> None:
    target, _, pattern = rule.id.partition("/")
    assert target in {"common", *TARGETS} and pattern
    assert pattern.replace("-", "").isalpha() and pattern.islower()
    assert rule.summary and rule.why and rule.roles
    for text in (rule.summary, rule.why):
        assert "\n" not in text and not text.endswith(".")


def test_ids_are_unique_in_a_pipeline() -> None:
    for target in TARGETS.values():
        ids = [step.rule.id for step in target.steps]
        assert len(ids) == len(set(ids))


def test_every_rule_file_is_in_a_pipeline() -> None:
    """A rule that no target runs is dead text."""
    from importlib import import_module
    from pkgutil import walk_packages

    import codegen.rules

    defined = set()
    for found in walk_packages(codegen.rules.__path__, "codegen.rules."):
        for value in vars(import_module(found.name)).values():
            if isinstance(value, type) and hasattr(value, "match") and hasattr(value, "cases"):
                if value.__module__ == found.name and isinstance(getattr(value, "id", None), str):
                    defined.add(value.id)
    assert defined == set(RULES)


def test_code_of_a_template_is_fresh() -> None:
    """Two edits made from one template must not share nodes: a shared node is replaced in both places."""
    from codegen.syntax import expression

    one, other = expression("f(HOLE)", HOLE=cst.Name("a")), expression("f(HOLE)", HOLE=cst.Name("b"))
    assert (code(one), code(other)) == ("f(a)", "f(b)")
    assert one is not other
