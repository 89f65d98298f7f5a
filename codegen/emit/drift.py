"""The report on two releases as markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Iterable

from codegen.drift import Drift, FamilyDrift, Outcome, Report
from codegen.targets import TARGETS


def markdown(report: Report) -> str:
    """What a reviewer has to look at first: refusals, meaning, then the families that only came or went or moved."""
    lines = [f"# transformers {report.before} -> {report.after}", ""]
    lines += markdown_table(("upstream", "families"), [(d.value, report.count(d)) for d in Drift if report.count(d)])
    counts = report.methods.items()
    lines += markdown_table(("methods of variants", "number"), [(drift.value, number) for drift, number in counts])
    outcomes = {target: report.outcomes(target) for target in TARGETS}
    rows: list[tuple[object, ...]] = [
        (o.value, *(outcomes[t].get(o, 0) for t in TARGETS)) for o in Outcome if any(o in outcomes[t] for t in TARGETS)
    ]
    lines += markdown_table(("variants", *TARGETS), rows)
    refused = [
        (f.family, v.target, f"`{d.span}`", d.rule, d.found)
        for f, v in report.with_outcome(Outcome.NEWLY_REFUSED)
        for d in v.why
    ]
    lines += section("Newly refused", markdown_table(("family", "target", "at", "by", "found"), refused))
    supported: dict[str, list[str]] = {}
    for f, v in report.with_outcome(Outcome.NEWLY_SUPPORTED):
        supported.setdefault(f.family, []).append(v.target)
    named = [(family, ", ".join(targets)) for family, targets in supported.items()]
    lines += section("Newly supported", markdown_table(("family", "targets"), named))
    semantic = [f for f in report.families if f.upstream is Drift.SEMANTIC]
    lines += section("Changed in meaning", _methods(semantic))
    unexplained = [(f.family, f"`{f.path}`") for f in report.families if f.unexplained]
    lines += section("Variant changed, no method did", markdown_table(("family", "file"), unexplained))
    shared = [
        (f"`{m.name}`", m.drift.value, f"{len(families)}: {', '.join(families)}")
        for m, families in report.imported.items()
    ]
    lines += section("Changed in imported code", markdown_table(("definition", "drift", "families"), shared))
    for title, drift in (("New families", Drift.NEW), ("Removed families", Drift.REMOVED)):
        moved = [(f.family, f"`{f.path}`", *_outcomes(f)) for f in report.families if f.upstream is drift]
        lines += section(title, markdown_table(("family", "file", *TARGETS), moved))
    spelled = [f for f in report.families if f.upstream is Drift.SPELLING]
    lines += section("Changed in spelling only", _methods(spelled))
    return "\n".join(lines).rstrip() + "\n"


def _methods(families: Iterable[FamilyDrift]) -> list[str]:
    rows = []
    for f in families:
        named = [
            f"{drift.value}: {', '.join(f'`{name}`' for name in f.of(drift))}"
            for drift in (Drift.SEMANTIC, Drift.NEW, Drift.REMOVED, Drift.SPELLING)
            if f.of(drift)
        ]
        rows.append((f.family, "; ".join(named), *_outcomes(f)))
    return markdown_table(("family", "methods", *TARGETS), rows)


def _outcomes(family: FamilyDrift) -> list[str]:
    return [v.outcome.value for v in family.variants]


def section(title: str, body: list[str]) -> list[str]:
    """Lines of a section; none where it has no body."""
    return [f"## {title}", "", *body] if body else []


def markdown_table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> list[str]:
    """Lines of a table; none where it has no rows."""
    listed = [f"| {' | '.join(_cell(value) for value in row)} |" for row in rows]
    if not listed:
        return []
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *listed, ""]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
