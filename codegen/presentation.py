"""What commands show on a terminal: progress, tables, diffs. Plain lines when the output is not a terminal."""

from __future__ import annotations

import difflib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from codegen.diagnostics import InputError

if TYPE_CHECKING:
    from codegen.comparison.unified import FamilyVariants
    from codegen.comparison.variants import ClassView
    from codegen.diagnostics import Diagnostic
    from codegen.drift import Report
    from codegen.emit.coverage import Row
    from codegen.generation import Tree
    from codegen.review import Explanation, Inspection, RuleFacts

# Without emoji: "modeling_x.py:100:5" is a place, not a picture.
OUT = Console(highlight=False, soft_wrap=True, emoji=False)
ERR = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(text: str) -> None:
    OUT.print(escape(text))


def warn(text: str) -> None:
    """To standard error, so that ``--json`` output stays clean."""
    ERR.print(escape(text), style="yellow")


def one_form(as_json: bool, as_markdown: bool) -> None:
    if as_json and as_markdown:
        raise InputError("--json and --markdown are two forms of one report; pass one of them")


def print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")


def tell_refusals(refused: Sequence[tuple[str, Diagnostic]]) -> None:
    """Families that are refused and were not before."""
    for name, problem in refused:
        warn(f"newly refused: {name}: {problem}")


class Bar:
    """Hears how much there is to do and what is done."""

    def planned(self, count: int) -> None:
        """``count`` files will be compiled."""

    def done(self, name: str) -> None:
        """One of them is."""


@contextmanager
def progress(label: str, quiet: bool) -> Iterator[Bar]:
    """A progress bar on a terminal; otherwise a line every 20 files on standard error, and nothing when quiet."""
    if quiet:
        yield Bar()
    elif ERR.is_terminal:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[name]}"),
        )
        with Progress(*columns, console=ERR, transient=True) as shown:
            task = shown.add_task(label, total=None, name="")

            class Rich(Bar):
                def planned(self, count: int) -> None:
                    shown.update(task, total=count)

                def done(self, name: str) -> None:
                    shown.update(task, advance=1, name=name)

            yield Rich()
    else:

        class Plain(Bar):
            total = seen = 0

            def planned(self, count: int) -> None:
                self.total = count

            def done(self, name: str) -> None:
                self.seen += 1
                if self.seen % 20 == 0 or self.seen == self.total:
                    print(f"{label}: {self.seen}/{self.total}", file=sys.stderr)

        yield Plain()


def show_states(tree: Tree, out: Path, source: Path | None) -> None:
    """Every file that is not fresh with its difference, how many files there are of each state, and what mends them."""
    from codegen.generation import FileState
    from codegen.own.choice import SHIPPED

    if tree.is_fresh:
        say(f"{len(tree.states)} files are fresh")
        return
    for path, state in tree.states.items():
        if state is not FileState.FRESH:
            warn(f"{state.value}: {path}")
            _show_diff(out / path, tree.files.get(path, ""), path)
    numbers = ((state, len(tree.in_state(state))) for state in FileState)
    say(", ".join(f"{number} {state.value}" for state, number in numbers if number))
    if tree.before is not None and tree.own is None and tree.before.version != tree.version:
        say(
            f"the tree is of transformers {tree.before.version}, and was compared with {tree.version}: install that"
            f" release or pass it as --source; to move the tree and its pin, run: regraft bump {tree.version}"
        )
        return
    options = (["--out", str(out)] if out != SHIPPED else []) + (["--source", str(source)] if source else [])
    say(f"run: {shlex.join(['regraft', 'generate', *options])}")
    if tree.in_state(FileState.HAND_EDITED):
        say("it stops at hand-edited files: undo the edits, or pass --discard-edits to overwrite them")


def _show_diff(path: Path, wanted: str, label: str) -> None:
    """The file on disk against the text the compiler would write."""
    from rich.text import Text

    now = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    lines = list(difflib.unified_diff(now, wanted.splitlines(), f"on disk/{label}", f"compiled/{label}", lineterm=""))
    for line in lines[:60] + (["..."] if len(lines) > 60 else []):
        OUT.print(Text(line, style={"-": "red", "+": "green", "@": "cyan"}.get(line[:1], "")))


def show_variants(found: FamilyVariants, pager: bool) -> None:
    """A unified diff. On a terminal it is coloured, says each rule's reason, and goes through the user's pager if it is
    longer than the screen."""
    from codegen.comparison.unified import unified

    if not OUT.is_terminal:
        for cls in found.classes:
            for line in unified(found, cls):
                print(line)
        return
    with OUT.capture() as captured:
        for cls in found.classes:
            _show_class(found, cls)
    text = captured.get()
    if pager and text.count("\n") >= OUT.height:
        import click

        click.echo_via_pager(text, color=not OUT.no_color)
    else:
        sys.stdout.write(text)


def _show_class(found: FamilyVariants, cls: ClassView) -> None:
    from rich.text import Text

    from codegen.comparison.unified import Sign, heading, hunk_lines, section, sections
    from codegen.review import rule_reason

    for title in heading(found, cls):
        OUT.print(Text(title, style="bold"))
    if cls.mixin:
        OUT.print(Text(f"   the runtime's {cls.mixin} stands in front of upstream's class", style="italic dim"))
    told: set[str] = set()
    for method, rows in sections(cls):
        OUT.print(Text(section(method, rows), style="cyan"))
        for rule in dict.fromkeys(name for row in rows for name in row.by if name not in told):
            told.add(rule)
            OUT.print(Text(f"   {rule}: {rule_reason(rule)}", style="italic dim"))
        for sign, line in hunk_lines(rows):
            style = {Sign.SAME: "", Sign.GONE: "red", Sign.COME: "green"}[sign]
            shown = Text(sign.value + line.text, style=style)
            for start, end in line.spans if sign is not Sign.SAME else ():
                shown.stylize("bold underline", start + 1, end + 1)
            OUT.print(shown)


def show_inspection(facts: Inspection) -> None:
    say(f"{facts.family}: {facts.head} in {facts.path}")
    for cls in facts.classes:
        say(f"  {cls.role:<10} {cls.name}  ({cls.place})")
        for call in cls.carries_to:
            say(f"             carries the cache by {call}")
        for rule in cls.rules:
            say(f"             {rule}")
    for name, rules in facts.functions:
        say(f"  function   {name}: {', '.join(rules)}")
    for name, place in facts.rotaries:
        say(f"  rotary     {name}  ({place})")
    for name, scale, place in facts.norms:
        say(f"  norm       {name}: {scale}  ({place})")
    for field, kind, lines in facts.switches:
        say(f"  switch     {field} ({kind}), lines {', '.join(map(str, lines[:6]))}")
    for diagnostic in facts.refused:
        warn(f"  refused    {diagnostic}")


def show_explanations(found: Sequence[Explanation]) -> None:
    from codegen.review import changed

    if not found:
        say("no rule made this line: it is an import, a docstring or layout of the emitter")
    for one in found:
        say(f"{one.rule}: {one.why}\n  from {one.upstream}")
        if one.before != one.after:
            before, after = changed(one.before, one.after)
            for line in before:
                OUT.print(escape(f"  - {line}"), style="red")
            for line in after:
                OUT.print(escape(f"  + {line}"), style="green")


def show_coverage(rows: Mapping[str, Sequence[Row]]) -> None:
    """What was measured, then why the others have no variant: two tables that fit into 80 columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from codegen.emit.coverage import numbers
    from codegen.emit.verified import ERRORS

    def table(title: str, numbers: Sequence[str], words: Sequence[str]) -> Table:
        grid = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        grid.add_column("type", no_wrap=True)
        for column in numbers:
            grid.add_column(column, no_wrap=True)
        for column in words:
            grid.add_column(column, overflow="fold")
        return grid

    for target, listed in rows.items():
        measured = table(target, ("state", "cases", *ERRORS[target].titles.values()), ())
        refused = table(f"{target}: refused", (), ("by", "found"))
        notes = table(f"{target}: notes", (), ("note",))
        for row in listed:
            if row.diagnostics:
                refused.add_row(row.family, row.diagnostics[0].rule, escape(" ".join(row.diagnostics[0].found.split())))
                continue
            measured.add_row(row.family, row.state.value, *numbers(target, row.record))
            if row.note:
                notes.add_row(row.family, escape(row.note))
        for grid in (measured, notes, refused):
            if grid.row_count:
                OUT.print(grid)
        states = [row.state.value for row in listed]
        say(", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)))
    say("with places and remedies: regraft coverage --json, regraft inspect TYPE")


def show_drift_as(report: Report, as_json: bool, as_markdown: bool) -> None:
    """In the form that was asked for."""
    if as_json:
        print_json(report.as_dict())
    elif as_markdown:
        from codegen.emit.drift import markdown

        sys.stdout.write(markdown(report))
    else:
        show_drift(report)


def show_drift(report: Report) -> None:
    """A summary, then one line per family that differs with its methods, in what reads worst first."""
    from codegen.drift import Drift, Outcome
    from codegen.targets import TARGETS

    def counted(numbers: Mapping[Drift, int] | Mapping[Outcome, int]) -> str:
        return ", ".join(f"{number} {what.value}" for what, number in numbers.items()) or "none"

    say(f"transformers {report.before} -> {report.after}")
    say(f"  families   {counted({d: report.count(d) for d in Drift if report.count(d)})}")
    say(f"  methods    {counted(report.methods)}")
    for target in TARGETS:
        say(f"  {target:<10} {counted(report.outcomes(target))}")
    for family, variant in report.with_outcome(Outcome.NEWLY_REFUSED):
        why = f": {variant.why[0]}" if variant.why else ""
        OUT.print(escape(f"newly refused by {variant.target}: {family.family}{why}"), style="red")
    for drift, style in (
        (Drift.SEMANTIC, "yellow"),
        (Drift.NEW, "green"),
        (Drift.REMOVED, "red"),
        (Drift.SPELLING, ""),
    ):
        for found in report.families:
            if found.upstream is not drift:
                continue
            variants = ", ".join(f"{v.target} {v.outcome.value}" for v in found.variants)
            OUT.print(escape(f"{drift.value}: {found.family} ({variants})"), style=style)
            for change in (Drift.SEMANTIC, Drift.NEW, Drift.REMOVED, Drift.SPELLING):
                for name in found.of(change):
                    say(f"  {change.value:<13} {name}")
    for one, families in report.imported.items():
        say(f"imported: {one.drift.value:<13} {one.name} ({len(families)} families)")
    for found in report.families:
        supported = [v.target for v in found.variants if v.outcome is Outcome.NEWLY_SUPPORTED]
        if supported and found.upstream not in {Drift.SEMANTIC, Drift.NEW, Drift.SPELLING}:
            say(f"newly supported: {found.family} ({', '.join(supported)})")
        if found.unexplained:
            say(f"variant changed, no method did: {found.family} ({found.path})")


def show_rules(found: Sequence[RuleFacts], in_full: bool) -> None:
    for rule in found:
        say(f"{rule.id}: {rule.summary}")
        if in_full:
            say(f"  why: {rule.why}\n  looks at: {', '.join(rule.roles)}\n  must apply: {rule.expects}")
            for source, outcome in rule.cases:
                say(f"\n  case:\n{_indented(source)}\n  becomes:\n{_indented(outcome)}")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
