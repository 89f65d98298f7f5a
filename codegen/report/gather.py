"""What the page shows, from the generated tree, upstream's text and, of a comparison, the tree of a revision."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codegen.comparison import lineage
from codegen.comparison.rows import Kind, Row, added, compared
from codegen.comparison.tokens import Piece, definition, piece
from codegen.comparison.unified import hunks
from codegen.comparison.variants import ClassView, MethodView, Written, class_views
from codegen.diagnostics import Diagnostic, InputError
from codegen.discovery import Family
from codegen.drift import Drift, FamilyDrift, Outcome, Report, Side, VariantDrift, compare
from codegen.driver import Compiled, in_processes, without_cycles
from codegen.emit.coverage import Row as CoverageRow
from codegen.emit.verified import ERRORS
from codegen.generation import module_path
from codegen.report.encoding import Encoder, changed_lines
from codegen.report.snapshot import Snapshot
from codegen.review import rule_list
from codegen.source import Release
from codegen.targets import TARGETS
from runtime.fingerprint import Method, methods

CONTEXT = 3  # unchanged lines shown around a change where not all are
AROUND = 5  # upstream's lines shown before and after the one that was not understood


@dataclass(frozen=True)
class Before:
    """The other end of a comparison: the tree at a revision, and the release it was made from."""

    revision: str
    commit: str
    tree: Snapshot
    release: Release


@dataclass(frozen=True)
class FileView:
    """One generated file: beside upstream's, and beside what it was at the revision."""

    classes: tuple[ClassView, ...]
    since: tuple[Row, ...]


Work = tuple[str, str, tuple[Written, ...], tuple[str | None, ...]]  # arguments of `_views`


@without_cycles()
def gather(
    tree: Snapshot,
    release: Release,
    before: Before | None,
    jobs: int,
    planned: Callable[[int], None] = lambda _: None,
    done: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The page's data as plain lists, numbers and texts. Raises InputError when a generated file is not of this
    compiler."""
    encoder = Encoder()
    written = [one for one in tree.compiled if one.text is not None]
    old = {(c.target, c.path): c.text for c in before.tree.compiled} if before is not None else {}
    by_path: dict[str, list[Compiled]] = {}
    for one in written:
        by_path.setdefault(one.path, []).append(one)
    work: list[Work] = []
    for path, listed in by_path.items():
        now = tuple(Written(c.target, tuple((f.model_type, f.head) for f in c.generated), c.text or "") for c in listed)
        work.append((path, release.text(path), now, tuple(old.get((c.target, path)) for c in listed)))
    planned(len(work))
    numbers: dict[tuple[str, str], int] = {}
    files: list[dict[str, Any]] = []
    for listed, views in zip(by_path.values(), in_processes(_views, work, jobs), strict=True):
        done(listed[0].stem)
        for one, view in zip(listed, views, strict=True):
            numbers[one.target, one.path] = len(files)
            was = old.get((one.target, one.path)) or ""
            files.append(_file(encoder, one, was, view, module_path(one) in tree.edited))
    drift = _drift(tree, release, before)
    families = [_family(encoder, tree, release, before, numbers, name, drift.get(name)) for name in _names(tree, drift)]
    upstream = _upstream(encoder, release, before, drift.values()) if before is not None else {}
    return {
        "release": tree.version,
        "before": _before(before),
        "targets": {name: {"measures": dict(ERRORS[name].titles), "meaning": ERRORS[name].meaning} for name in TARGETS},
        "rules": _rules(),
        "edited": sorted(tree.edited),
        "families": families,
        "files": files,
        "upstream": upstream,
        "sets": encoder.rules.values,
        "lines": encoder.lines.values,
    }


def _before(before: Before | None) -> dict[str, str] | None:
    if before is None:
        return None
    return {"revision": before.revision, "commit": before.commit, "release": before.release.version}


def _rules() -> dict[str, dict[str, str]]:
    """Every rule by id, and what the emitter does on its own."""
    known = {rule.id: {"summary": rule.summary, "why": rule.why} for rule in rule_list(None)}
    return known | {name: {"summary": "", "why": why} for name, why in lineage.WHY.items()}


# -------------------------------------------------------------------------------------------------------------- files


def _views(path: str, upstream: str, files: tuple[Written, ...], old: tuple[str | None, ...]) -> list[FileView]:
    """Runs in a process of its own."""
    with without_cycles():
        return [
            FileView(tuple(classes), _changes(was, file.text, classes))
            for classes, file, was in zip(class_views(path, upstream, files), files, old, strict=True)
        ]


def _changes(was: str | None, now: str, classes: Sequence[ClassView]) -> tuple[Row, ...]:
    """A generated file against what it was, with the rules that make its lines today."""
    if was is None or was == now:
        return ()
    by = _made_by(classes)
    return tuple(
        Row(row.kind, row.left, row.right, by.get(row.right.number, ()) if row.right is not None else ())
        for row in compared(piece(was), piece(now))
    )


def _made_by(classes: Iterable[ClassView]) -> dict[int, tuple[str, ...]]:
    """Which rules made each line of a generated file."""
    result: dict[int, tuple[str, ...]] = {}
    for cls in classes:
        if cls.role == "function" and "." in cls.variant:
            continue  # its lines are the runtime's
        for method in (*cls.methods, *cls.extra):
            result |= {row.right.number: row.by for row in method.rows if row.right is not None and row.by}
    return result


def _file(encoder: Encoder, one: Compiled, was: str, view: FileView, edited: bool) -> dict[str, Any]:
    shown = [method for cls in view.classes for method in (*cls.methods, *cls.extra)]
    rows = [row for method in shown for row in method.rows]
    rules = {name for cls in view.classes for name in cls.rules} | {name for row in rows for name in row.by}
    return {
        "target": one.target,
        "name": module_path(one),
        "edited": edited,
        "changed": changed_lines(rows),
        "rules": sorted(rules),
        "classes": [_class(encoder, cls) for cls in view.classes],
        "since": _since(encoder, view.since, was, one.text or ""),
        "sinceChanged": changed_lines(view.since),
    }


def _class(encoder: Encoder, cls: ClassView) -> dict[str, Any]:
    return {
        "upstream": cls.upstream,
        "variant": cls.variant,
        "role": cls.role,
        "place": cls.place,
        "rules": cls.rules,
        "mixin": cls.mixin,
        "methods": [_method(encoder, method) for method in cls.methods],
        "extra": [_method(encoder, method) for method in cls.extra],
    }


def _method(encoder: Encoder, method: MethodView) -> dict[str, Any]:
    return {"name": method.where, "line": method.line, "rows": encoder.rows(method.rows)}


def _since(encoder: Encoder, rows: Sequence[Row], was: str, text: str) -> list[dict[str, Any]]:
    """The hunks of a generated file, each under the name of what it begins in."""
    if not rows:
        return []
    places = _places(ast.parse(text))
    old, new = was.split("\n"), text.split("\n")
    result = []
    for hunk in hunks(rows, CONTEXT):
        first = next((r.right.number for r in hunk if r.kind is not Kind.SAME and r.right is not None), 0)
        first = first or next((r.right.number for r in hunk if r.right is not None), 0)
        inside = next((name for start, end, name in places if start <= first <= end), "")
        left = next((r.left.number for r in hunk if r.left is not None), 1)
        right = next((r.right.number for r in hunk if r.right is not None), 1)
        quoted = [_is_quoted(old, left), _is_quoted(new, right)]
        result.append({"name": inside, "quoted": quoted, "rows": encoder.rows(hunk)})
    return result


def _is_quoted(lines: Sequence[str], number: int) -> bool:
    """Whether a line begins inside a docstring, as the page colours it."""
    return sum(line.count('"""') for line in lines[: number - 1]) % 2 == 1


def _places(tree: ast.Module) -> list[tuple[int, int, str]]:
    """First line, last line and name of every method, then of every class and function."""
    inner, outer = [], []
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            outer.append((node.lineno, node.end_lineno or node.lineno, node.name))
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef):
                    inner.append((member.lineno, member.end_lineno or member.lineno, f"{node.name}.{member.name}"))
    return inner + outer


# ----------------------------------------------------------------------------------------------------------- families


def _drift(tree: Snapshot, release: Release, before: Before | None) -> dict[str, FamilyDrift]:
    if before is None:
        return {}
    report: Report = compare(Side(before.release, before.tree.compiled), Side(release, tree.compiled))
    return {family.family: family for family in report.families}


def _names(tree: Snapshot, drift: Mapping[str, FamilyDrift]) -> list[str]:
    return sorted({name for rows in tree.coverage.values() for name in rows} | drift.keys())


def _family(
    encoder: Encoder,
    tree: Snapshot,
    release: Release,
    before: Before | None,
    views: Mapping[tuple[str, str], int],
    name: str,
    drift: FamilyDrift | None,
) -> dict[str, Any]:
    family = _found(tree, name) or (_found(before.tree, name) if before is not None else None)
    assert family is not None, name
    result: dict[str, Any] = {"name": name, "head": family.head, "path": family.path, "targets": {}}
    if drift is not None:
        result["drift"] = drift.upstream.value
        for which, listed in (("methods", drift.methods), ("imported", drift.imported)):
            result[which] = [[encoder.text(m.name), m.drift.value] for m in listed]
    for target in TARGETS:
        row = tree.coverage[target].get(name)
        was = before.tree.coverage[target].get(name) if before is not None else None
        shown = _coverage(encoder, release, row)
        shown["file"] = views.get((target, family.path)) if row is not None and not row.diagnostics else None
        if drift is not None:
            shown["outcome"] = _outcome(drift, next(v for v in drift.variants if v.target == target))
            shown["unexplained"] = drift.unexplained and shown["outcome"] == Outcome.CHANGED.value
            shown["before"] = _coverage(encoder, before.release, was) if before is not None else None
        result["targets"][target] = shown
    return result


def _found(tree: Snapshot, name: str) -> Family | None:
    for one in tree.compiled:
        for family in (*one.generated, *(refused for refused, _ in one.refused)):
            if family.model_type == name:
                return family
    return None


def _outcome(family: FamilyDrift, variant: VariantDrift) -> str:
    """A family that came or went says so, whatever its variant would be called."""
    if family.upstream is Drift.REMOVED:
        return "removed"
    if family.upstream is Drift.NEW and variant.outcome is Outcome.NEWLY_SUPPORTED:
        return "new"
    return variant.outcome.value


def _coverage(encoder: Encoder, release: Release, row: CoverageRow | None) -> dict[str, Any]:
    if row is None:
        return {"state": "none", "note": "", "diagnostics": []}
    result: dict[str, Any] = {
        "state": row.state.value,
        "note": "" if row.diagnostics else row.note,
        "diagnostics": [_diagnostic(encoder, release, d) for d in row.diagnostics],
    }
    if row.record is not None:
        result["cases"] = row.record.cases
        result["errors"] = {name: float(f"{value:.1e}") for name, value in row.record.errors.items()}
    return result


def _diagnostic(encoder: Encoder, release: Release, one: Diagnostic) -> dict[str, Any]:
    result: dict[str, Any] = {
        "place": str(one.span),
        "rule": one.rule,
        "expected": one.expected,
        "found": one.found,
        "help": one.help,
    }
    try:
        lines = release.text(one.span.path).split("\n") if one.span.line else []
    except InputError:  # the diagnostic says so
        lines = []
    first, last = max(one.span.line - AROUND, 1), min(one.span.line + AROUND, len(lines))
    if first <= one.span.line <= last:
        result["line"], result["first"], result["quoted"] = one.span.line, first, _is_quoted(lines, first)
        result["lines"] = [encoder.text(line) for line in lines[first - 1 : last]]
    return result


# ----------------------------------------------------------------------------------------------------------- upstream


def _upstream(
    encoder: Encoder, release: Release, before: Before, families: Iterable[FamilyDrift]
) -> dict[str, dict[str, Any]]:
    """Upstream's own changes by file and method; of those methods that are not the same."""
    wanted: dict[str, set[str]] = {}
    for family in families:
        differing = {m.name for m in family.methods if m.drift is not Drift.UNCHANGED}
        wanted.setdefault(family.path, set()).update(differing)
    old_paths = {f.model_type: f.path for c in before.tree.compiled for f in (*c.generated, *(r for r, _ in c.refused))}
    result = {}
    for family in families:
        names = wanted.pop(family.path, set())
        if names:
            old, new = before.release.text(old_paths[family.family]), release.text(family.path)
            result[family.path] = dict(_methods(encoder, old, new, names))
    return result


def _methods(encoder: Encoder, old: str, new: str, names: set[str]) -> Iterator[tuple[str, Any]]:
    ours, theirs = methods(ast.parse(old)), methods(ast.parse(new))
    for name in sorted(names):
        was, now = _lines(old, ours.get(name)), _lines(new, theirs.get(name))
        rows = added(now, "") if not was.lines else compared(was, now)
        yield name, [encoder.rows(hunk) for hunk in hunks(rows, CONTEXT)]


def _lines(text: str, node: Method | None) -> Piece:
    """A method or function; of a class what is none of its methods."""
    lines = text.split("\n")
    if node is None:
        return Piece((), ())
    if not isinstance(node, ast.ClassDef):
        return definition(lines, node)
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    last = max([node.lineno, *(b.end_lineno or 0 for b in (*node.bases, *(k.value for k in node.keywords)))])
    if lines[last : last + 1] and lines[last].strip().startswith(")"):
        last += 1
    numbers = [*range(first, last + 1)]
    for statement in node.body[ast.get_docstring(node, clean=False) is not None :]:
        if statement.lineno > last:
            numbers += range(statement.lineno, (statement.end_lineno or statement.lineno) + 1)
    return Piece(tuple(lines[n - 1] for n in numbers), tuple(numbers))
