"""What reviewers ask: upstream against variant, what was recognized, which rule made a line."""

from __future__ import annotations

import ast
import difflib
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

import libcst as cst

from codegen import store
from codegen.comparison.lineage import WHY
from codegen.comparison.unified import FamilyVariants
from codegen.comparison.variants import Written, class_views
from codegen.derive import AppliedEdit, EmittedModule, derive
from codegen.diagnostics import Diagnostic, InputError, Refused, Span
from codegen.discovery import Family, discover
from codegen.driver import compile_text
from codegen.emit import coverage, manifest, verified
from codegen.emit.coverage import Row
from codegen.generation import module_path, select
from codegen.recognize.family import recognize
from codegen.rules.base import Rule
from codegen.source import Release
from codegen.syntax import code, every_statement, find, walk
from codegen.targets import TARGETS
from codegen.upstream import UpstreamModule


def variants_of(release: Release, family: str, target: str) -> FamilyVariants:
    """The variants of a family as this compiler writes them. Raises InputError when the family is refused."""
    found = _family(release, family)
    text = release.text(found.path)
    compiled = compile_text(text, found.path, (found,), _target(target), package=release.package)
    if compiled.text is None:
        raise InputError("\n".join(str(d) for _, diagnostics in compiled.refused for d in diagnostics))
    written = Written(target, ((found.model_type, found.head),), compiled.text)
    (classes,) = class_views(found.path, text, [written])
    return FamilyVariants(found.path, module_path(compiled), tuple(classes))


@dataclass(frozen=True)
class ClassFacts:
    """A class below the head: its role, where it stands, which calls carry the cache on, and what each rule did."""

    name: str
    role: str
    place: str
    carries_to: tuple[str, ...]
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """Facts of one family with their evidence. ``refused`` holds the diagnostics when it has no variant."""

    family: str
    head: str
    path: str
    classes: tuple[ClassFacts, ...] = ()
    norms: tuple[tuple[str, str, str], ...] = ()
    rotaries: tuple[tuple[str, str], ...] = ()
    functions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    switches: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    refused: tuple[Diagnostic, ...] = ()

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "refused": [d.as_dict() for d in self.refused]}


def inspection(release: Release, family: str, target: str) -> Inspection:
    """What the compiler knows of a family; what it could not derive is in ``refused``."""
    from codegen.recognize.switches import config_switches

    found = _family(release, family)
    try:
        module = UpstreamModule(found.path, release.text(found.path), release.package)
        ir = recognize(module, ((found.model_type, found.head),))
    except Refused as error:
        return Inspection(family, found.head, found.path, refused=error.diagnostics)
    refused: tuple[Diagnostic, ...] = ()
    applied: dict[str, tuple[str, ...]] = {}
    functions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    try:
        emitted = derive(module, ir, TARGETS[_target(target)])
        applied = {v.upstream: tuple(r.id for r in v.rules) for v in emitted.variants}
        functions = tuple((f.node.name.value, tuple(r.id for r in f.rules)) for f in emitted.functions)
    except Refused as error:
        refused = error.diagnostics
    classes = []
    for name in ir.reachable:
        carrier = ir.carrier(name)
        if carrier is None and name not in applied:
            continue
        calls = tuple(f"self.{a} -> {', '.join(c)}" for a, c in carrier.calls) if carrier is not None else ()
        role = carrier.role.value if carrier is not None else "part"
        classes.append(ClassFacts(name, role, str(module.span(name)), calls, applied.get(name, ())))
    return Inspection(
        family,
        found.head,
        found.path,
        tuple(classes),
        tuple((n.name, n.scale.value, str(module.span(n.method))) for n in ir.norms),
        tuple((r.name, str(module.span(r.method))) for r in ir.rotaries),
        functions,
        tuple((s.field, s.kind.value, s.lines) for s in config_switches(module.ast, ir.reachable)),
        refused,
    )


@dataclass(frozen=True)
class Explanation:
    """One edit: where in upstream, by which rule and why, and the text before and after."""

    rule: str
    why: str
    upstream: str
    before: str
    after: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def explanations(release: Release, place: str, root: Path) -> list[Explanation]:
    """For ``FILE`` every edit; for ``FILE:LINE`` those that made the line, or where an untouched line comes from."""
    name, _, number = place.partition(":")
    if number and not number.isdigit():
        raise InputError(f"{place}: the line is a number")
    path = Path(name)
    remembered = manifest.read(root / manifest.NAME)
    entries = remembered.entries.values() if remembered is not None else ()
    entry = next(
        (e for e in entries if e.output and path.parts[-2:] == (e.compiled.target, f"{e.compiled.stem}.py")), None
    )
    if entry is None:
        raise InputError(f"{name} is not a generated file of {root}")
    families = entry.compiled.generated
    module = UpstreamModule(entry.compiled.path, release.text(entry.compiled.path), release.package)
    target = TARGETS[entry.compiled.target]
    try:
        emitted = derive(module, recognize(module, tuple((f.model_type, f.head) for f in families)), target)
    except Refused as error:
        raise InputError(str(error)) from None
    known = {step.rule.id: step.rule for step in target.steps}
    if not number:
        return [_explained(module, known, edit) for edit in emitted.edits]
    text = (root / entry.compiled.target / f"{entry.compiled.stem}.py").read_text("utf-8")
    return _of_line(emitted, known, text, int(number))


def _explained(module: UpstreamModule, known: dict[str, Rule], edit: AppliedEdit) -> Explanation:
    return Explanation(edit.rule, known[edit.rule].why, _edited(module, edit), edit.before, edit.after)


def changed(before: str, after: str) -> tuple[list[str], list[str]]:
    """What left and what came, as lines; of two parameter lists, calls of one function or runs of lines only what
    differs."""
    for items in (_parameters, _call_arguments):
        old, new = items(before), items(after)
        if old is None or new is None or old[0] != new[0]:
            continue
        gone, come = ([i for i in one if i not in other] for one, other in ((old[1], new[1]), (new[1], old[1])))
        if gone or come:
            return _listed(old[0], gone), _listed(new[0], come)
    lines, others = before.splitlines(), after.splitlines()
    if len(lines) == 1 or not others:
        return lines, others
    places = _changed_places(lines, others)
    return _cut_out(lines, places[0]), _cut_out(others, places[1])


def _cut_out(lines: list[str], places: list[tuple[int, int]]) -> list[str]:
    return textwrap.dedent("\n".join(line for a, b in places for line in lines[a:b] if line)).splitlines()


def _changed_places(before: list[str], after: list[str]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """From and to which lines, as slices, two texts differ; a line that is only indented anew is the same."""
    old, new = ([line.strip() for line in lines] for lines in (before, after))
    codes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    changes = [code for code in codes if code[0] != "equal"]
    return [(c[1], c[2]) for c in changes], [(c[3], c[4]) for c in changes]


def _listed(function: str, items: list[str]) -> list[str]:
    if not function or not items:
        return "\n".join(items).splitlines()
    return f"{function}(..., {', '.join(items)})".splitlines()


def _parameters(text: str) -> tuple[str, list[str]] | None:
    """The parameters that the text is a list of; each with its annotation and default."""
    try:
        function = cst.parse_statement(f"def f({text}): ...")
    except cst.ParserSyntaxError:
        return None
    assert isinstance(function, cst.FunctionDef)
    return "", [code(p.with_changes(comma=cst.MaybeSentinel.DEFAULT)) for p in find(function.params, cst.Param)]


def _call_arguments(text: str) -> tuple[str, list[str]] | None:
    """What is called, and the arguments."""
    try:
        call = cst.parse_expression(text)
    except cst.ParserSyntaxError:
        return None
    if not isinstance(call, cst.Call):
        return None
    plain = {"comma": cst.MaybeSentinel.DEFAULT, "whitespace_after_arg": cst.SimpleWhitespace("")}
    return code(call.func), [code(a.with_changes(**plain)) for a in call.args]


def _of_line(emitted: EmittedModule, known: dict[str, Rule], text: str, number: int) -> list[Explanation]:
    """Edits that made the statement at the line, or upstream's line when none did; nothing outside of methods."""
    lines = text.splitlines()
    if not 1 <= number <= len(lines):
        raise InputError(f"the file has {len(lines)} lines")
    module = emitted.module
    found = _method_at(ast.parse(text), number)
    if found is None or not _squeezed(lines[number - 1]):
        return []
    cls, node = found
    owners = module.bases(cls.removeprefix(emitted.target.prefix)) if cls else ("",)
    places = [f"{owner}.{node.name}" if owner else node.name for owner in owners]
    line = lines[number - 1].strip()
    statement = _squeezed("".join(lines[slice(*_statement_at(node, number))]))
    for where in places:
        if statement in _squeezed("".join(_source(module, where))):
            own = Explanation("(upstream)", "the line is upstream's own", _place(module, where, line), line, line)
            other = [e for e in emitted.edits if e.where in places and e.before != code(e.node)]
            return [own, *(_explained(module, known, e) for e in other if f"{code(e.node)}(" in statement)]
    edits = [e for e in emitted.edits if e.where in places and e.after and statement not in _squeezed(e.before)]
    made = [e for e in edits if _squeezed(e.after) in statement or statement in _squeezed(e.after)]
    return [_explained(module, known, e) for e in made]


def _method_at(tree: ast.Module, number: int) -> tuple[str, ast.FunctionDef] | None:
    """The class (empty for a function) and the function that hold the line."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        for member in members:
            if isinstance(member, ast.FunctionDef) and member.lineno <= number <= (member.end_lineno or 0):
                return node.name if isinstance(node, ast.ClassDef) else "", member
    return None


def _statement_at(function: ast.FunctionDef, number: int) -> tuple[int, int]:
    """From and to which line, as a slice, the simple statement at a line goes; the line alone in a compound's head."""
    for node in ast.walk(function):
        if isinstance(node, ast.stmt) and not hasattr(node, "body"):
            if node.lineno <= number <= (node.end_lineno or 0):
                return node.lineno - 1, node.end_lineno or number
    return number - 1, number


def _source(module: UpstreamModule, where: str) -> list[str]:
    """Upstream's lines of ``Class.method`` or ``function``."""
    owner, _, name = where.rpartition(".")
    holder = next((n for n in module.ast.body if isinstance(n, ast.ClassDef) and n.name == owner), module.ast)
    for node in holder.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return module.text.splitlines()[node.lineno - 1 : node.end_lineno]
    return []


def _edited(module: UpstreamModule, edit: AppliedEdit) -> str:
    """Where upstream has what an edit changed, found by the statement around it; of several statements the first that
    changed, or that something was put in front of."""
    lines = edit.before.splitlines()
    if isinstance(edit.node, cst.BaseSuite) and edit.after:
        first, _ = _changed_places(lines, edit.after.splitlines())[0][0]
        return _place(module, edit.where, next((line for line in lines[first:] if line), lines[-1]))
    around = ""
    for statement in every_statement(edit.function.body):
        if any(node is edit.node for node in walk(statement)):
            around = code(statement)  # the innermost comes last
    upstream = _squeezed("".join(_source(module, edit.where)))
    return _place(module, edit.where, code(edit.node), max(upstream.find(_squeezed(around)), 0))


def _place(module: UpstreamModule, where: str, text: str, start: int = 0) -> str:
    """The upstream line where a text begins, or where the method does when an earlier rule had changed it. ``start``
    counts characters of the method that are not layout."""
    span = module.span(where)
    lines = _source(module, where)
    at = "".join(map(_squeezed, lines)).find(_squeezed(text), start)
    for offset, line in enumerate(lines if at >= 0 else []):
        if at < len(_squeezed(line)):
            return str(Span(span.path, span.line + offset, len(line) - len(line.lstrip()) + 1))
        at -= len(_squeezed(line))
    return str(span)


def _squeezed(text: str) -> str:
    """Without blanks and commas, since the formatter breaks lines as it likes, and adds a comma where it does."""
    return "".join(text.split()).replace(",", "")


def coverage_rows(root: Path) -> dict[str, list[Row]]:
    """The coverage table from what is on disk; nothing is compiled. Raises InputError when nothing was generated."""
    store.check_whole(root)
    remembered = manifest.read(root / manifest.NAME)
    if remembered is None:
        raise InputError(f"{root} holds no manifest; run regraft generate")
    records = verified.read(root / verified.NAME)
    result = {}
    for target in TARGETS:
        entries = [e for (t, _), e in remembered.entries.items() if t == target]
        digests = {e.compiled.path: e.output for e in entries}
        result[target] = coverage.rows([e.compiled for e in entries], digests, records.get(target, {}))
    return result


@dataclass(frozen=True)
class RuleFacts:
    """A rule as ``regraft rules`` shows it."""

    id: str
    target: str
    roles: tuple[str, ...]
    expects: str
    summary: str
    why: str
    cases: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def rule_list(wanted: str | None) -> list[RuleFacts]:
    """All rules in pipeline order, or the one named. Raises InputError for an unknown id."""
    result = []
    for target in TARGETS.values():
        for step in target.steps:
            rule = step.rule
            cases = tuple(
                (
                    c.source.strip(),
                    c.after.strip() if c.after else f"refused: {c.refuses}" if c.refuses else "left as it is",
                )
                for c in rule.cases
            )
            roles = tuple(sorted(r.value for r in rule.roles))
            result.append(RuleFacts(rule.id, target.name, roles, step.expect.value, rule.summary, rule.why, cases))
    if wanted is None:
        return result
    chosen = [r for r in result if r.id == wanted]
    if not chosen:
        near = difflib.get_close_matches(wanted, [r.id for r in result], n=3)
        raise InputError(f"no rule {wanted}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    return chosen


def rule_reason(rule: str) -> str:
    """Why a rule does what it does; also of what the emitter does on its own."""
    return {**WHY, **{known.id: known.why for known in rule_list(None)}}[rule]


def _family(release: Release, name: str) -> Family:
    return select(release, discover(release), [name])[0]


def _target(name: str) -> str:
    if name not in TARGETS:
        raise InputError(f"no target {name}; there are {', '.join(TARGETS)}")
    return name
