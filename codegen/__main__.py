"""``regraft`` and ``python -m codegen``: the commands, and nothing but the commands."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from codegen import store
from codegen.diagnostics import InputError, Refused
from codegen.generation import FileState, Tree, build
from codegen.own.choice import SHIPPED, chosen_source, own_source
from codegen.presentation import one_form, print_json, progress, say, show_drift_as, tell_refusals, warn
from codegen.source import Release
from codegen.targets import TARGETS

FRESH, DIFFERENT, UNUSABLE, INTERRUPTED = 0, 1, 2, 130

app = typer.Typer(
    help="Derives inference and training variants of Hugging Face causal LMs from upstream's own source text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done and as expected; 1 something differs (new refusal, not fresh, verification failed);"
    " 2 unusable input or options; 130 interrupted.",
)

Families = Annotated[
    list[str] | None, typer.Argument(help="Model types; all of upstream's mapping when none is named.")
]
OneFamily = Annotated[str, typer.Argument(help="A model type of upstream's causal-LM mapping.")]
Source = Annotated[
    Path | None, typer.Option(help="A wheel file or a folder with upstream's source, instead of the installed one.")
]
Out = Annotated[Path, typer.Option(help="The generated tree.")]
From = Annotated[
    Path | None,
    typer.Option(
        "--from", help="A folder of yours with modeling_<name>.py, instead of upstream; see docs/own_models.md."
    ),
]
Jobs = Annotated[int, typer.Option(min=1, help="Processes.")]
Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output, nothing else.")]
TargetName = Annotated[str, typer.Option(help="The set of variants.")]

ENDPOINT = 'A version (pip downloads its wheel), a wheel file, a folder, or "installed".'
Markdown = Annotated[bool, typer.Option("--markdown", help="Write markdown, as for a pull request.")]

CPUS = os.cpu_count() or 1
TIME_LIMIT = 900.0  # seconds per family that is verified


@app.command()
def generate(
    families: Families = None,
    source: Source = None,
    out: Out = SHIPPED,
    jobs: Jobs = CPUS,
    as_json: Json = False,
    discard_edits: Annotated[bool, typer.Option(help="Overwrite files that were edited by hand.")] = False,
    own: From = None,
    module: Annotated[
        str | None, typer.Option(help="With --from: the dotted name of its package, if that cannot be seen.")
    ] = None,
) -> None:
    """Compile families and write what changed, all of it or nothing."""
    store.recover(out)
    release = chosen_source(source, own, module, out)
    with progress("compiling", quiet=as_json) as bar:
        tree = build(release, out, families or (), jobs, bar.planned, lambda c: bar.done(c.stem))
    if tree.own is not None:
        from codegen.own.source import check_place

        check_place(out, tree.own.module, tree.written, frozenset(tree.files))
    if (edited := tree.in_state(FileState.HAND_EDITED)) and not discard_edits:
        raise InputError(
            f"edited by hand: {', '.join(edited)}. Nothing was written. Move the change into a rule,"
            " or pass --discard-edits to overwrite"
        )
    changes = store.plan(out, tree.files, tree.owned)
    store.commit(out, changes)
    refused = tree.newly_refused()
    report = {
        "upstream": tree.version,
        "created": list(changes.created),
        "updated": list(changes.updated),
        "removed": list(changes.orphaned),
        "unchanged": len(changes.unchanged),
        "compiled_files": len(tree.compiled) - tree.reused,
        "generated": tree.count("generated"),
        "refused": tree.count("refused"),
        "newly_refused": [{**problem.as_dict(), "family": name} for name, problem in refused],
    }
    if as_json:
        print_json(report)
    else:
        for family in release.families or ():
            say(f"{family.model_type}: {family.head} in {family.path}; its classes are of {release.package}")
        made, left = tree.count("generated"), tree.count("refused")
        counted = "; ".join(f"{target} {made[target]} families generated, {left[target]} refused" for target in made)
        say(
            f"transformers {tree.version}: {counted};"
            f" {len(changes.created)} files created, {len(changes.updated)} updated, {len(changes.orphaned)} removed,"
            f" {len(changes.unchanged)} unchanged"
        )
        tell_refusals(refused)
    raise typer.Exit(DIFFERENT if refused else FRESH)


@app.command()
def check(
    source: Source = None,
    out: Out = SHIPPED,
    jobs: Jobs = CPUS,
    as_json: Json = False,
    cold: Annotated[bool, typer.Option(help="Compile everything again, whatever the manifest says.")] = False,
    own: From = None,
) -> None:
    """Compare the generated tree with what the compiler would write: fresh, stale, missing, orphaned, hand-edited."""
    with progress("checking", quiet=as_json) as bar:
        release = chosen_source(source, own, None, out)
        tree = build(release, out, (), jobs, bar.planned, lambda c: bar.done(c.stem), trust_manifest=not cold)
    refused = tree.newly_refused()
    if as_json:
        print_json({path: state.value for path, state in tree.states.items()})
    else:
        from codegen.presentation import show_states

        show_states(tree, out, source)
    tell_refusals(refused)
    raise typer.Exit(FRESH if tree.is_fresh and not refused else DIFFERENT)


@app.command()
def diff(
    family: OneFamily,
    source: Source = None,
    target: TargetName = "qeff",
    as_json: Json = False,
    own: From = None,
    pager: Annotated[bool, typer.Option("--pager/--no-pager", help="On a terminal, a page at a time.")] = True,
) -> None:
    """Upstream's classes against their variants, as a unified diff; each hunk says which rules made it."""
    from codegen.comparison.unified import unified
    from codegen.review import variants_of

    found = variants_of(chosen_source(source, own), family, target)
    if as_json:
        print_json({cls.variant: "\n".join(unified(found, cls)) for cls in found.classes})
        return
    from codegen.presentation import show_variants

    show_variants(found, pager)


@app.command()
def report(
    against: Annotated[str | None, typer.Option(metavar="REV", help="Also show what changed since a revision.")] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("regraft-report.html"),
    source: Source = None,
    base: Annotated[str | None, typer.Option(help="The same for the release of REV's tree.")] = None,
    tree: Annotated[Path, typer.Option(help="The generated tree.")] = SHIPPED,
    jobs: Jobs = CPUS,
    as_json: Json = False,
) -> None:
    """One HTML file for reviewing a regeneration: variants beside upstream, with the rule of each changed line.

    Exit codes: 0 written; 1 written, but a file of the tree is edited by hand; 2 unusable input, nothing written.
    """
    from codegen.report.command import written

    with progress("comparing", quiet=as_json) as bar:
        page = written(tree, out, against, source, base, jobs, bar.planned, bar.done)
    if as_json:
        print_json(page.as_dict())
    else:
        say(f"{page.path}: {page.families} families, {page.size / 1e6:.1f} MB; open it in a browser")
    if page.edited:
        warn(f"edited by hand: {', '.join(page.edited)}; the page marks what no rule made")
    raise typer.Exit(DIFFERENT if page.edited else FRESH)


@app.command()
def inspect(
    family: OneFamily, source: Source = None, target: TargetName = "qeff", as_json: Json = False, own: From = None
) -> None:
    """What was recognized, with its evidence, and what each rule does to each class."""
    from codegen.review import inspection

    facts = inspection(chosen_source(source, own), family, target)
    if as_json:
        print_json(facts.as_dict())
    else:
        from codegen.presentation import show_inspection

        show_inspection(facts)
    raise typer.Exit(DIFFERENT if facts.refused else FRESH)


@app.command()
def explain(
    place: Annotated[str, typer.Argument(help="A generated file, or FILE:LINE.", metavar="FILE[:LINE]")],
    source: Source = None,
    out: Out = SHIPPED,
    as_json: Json = False,
) -> None:
    """Which rules and which upstream lines made a generated file, or one of its lines."""
    from codegen.review import explanations

    found = explanations(chosen_source(source, None, None, out), place, out)
    if as_json:
        print_json([e.as_dict() for e in found])
        return
    from codegen.presentation import show_explanations

    show_explanations(found)


@app.command()
def verify(
    families: Families = None,
    every: Annotated[bool, typer.Option("--all", help="Every generated family.")] = False,
    target: TargetName = "qeff",
    stages: Annotated[
        str,
        typer.Option(
            help="Comma separated, all when empty: hf (upstream), then kv (torch), ort (ONNX Runtime) of qeff, or"
            " packed, liger (Liger's kernels) of rmpad."
        ),
    ] = "",
    cases: Annotated[str, typer.Option(help="Names of cases, comma separated; all when empty.")] = "",
    jobs: Jobs = CPUS,
    seed: Annotated[int, typer.Option(help="Of the random weights and prompts.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds per family.")] = TIME_LIMIT,
    record: Annotated[bool, typer.Option(help="Record the results in VERIFIED.toml and COVERAGE.md.")] = False,
    out: Out = SHIPPED,
    as_json: Json = False,
    own: From = None,
) -> None:
    """Compare variants with unmodified upstream: logits and tokens in torch and ONNX Runtime (qeff), or logits, losses
    and gradients one sequence at a time (rmpad)."""
    from codegen.verification import run_verification

    models = own_source(None, own, None, out)
    if bool(families) == every and (families or models is None):
        raise InputError("name families, or pass --all")
    verified = run_verification(
        target,
        families or [],
        out,
        time_limit,
        tuple(s for s in stages.split(",") if s),
        tuple(c for c in cases.split(",") if c),
        jobs,
        seed,
        record,
        models,
    )
    verified.show(as_json)
    raise typer.Exit(FRESH if verified.passed else DIFFERENT)


@app.command()
def coverage(out: Out = SHIPPED, as_json: Json = False) -> None:
    """Every type of upstream's mapping: verified, generated, or refused with the reason."""
    from codegen.review import coverage_rows

    rows = coverage_rows(out)
    if as_json:
        print_json({target: [row.as_dict() for row in listed] for target, listed in rows.items()})
        return
    from codegen.presentation import show_coverage

    show_coverage(rows)


@app.command()
def rules(
    rule: Annotated[str | None, typer.Argument(help="One rule's id, for its reason and examples.")] = None,
    as_json: Json = False,
) -> None:
    """The rules of every target, in pipeline order, or one of them with its examples."""
    from codegen.review import rule_list

    found = rule_list(rule)
    if as_json:
        print_json([r.as_dict() for r in found])
        return
    from codegen.presentation import show_rules

    show_rules(found, in_full=rule is not None)


@app.command()
def drift(
    before: Annotated[str, typer.Argument(help=ENDPOINT, metavar="FROM")],
    after: Annotated[str, typer.Argument(help=ENDPOINT, metavar="TO")],
    out: Out = SHIPPED,
    jobs: Jobs = CPUS,
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """What changed between two releases, per family and method, and what becomes of the variants. Writes nothing.

    Exit codes: 0 no variant is affected in meaning; 1 a method that a variant is derived from or relies on changed in
    meaning, a variant changed without any, is newly refused or newly supported, or a family came or went; 2 a release
    cannot be had.
    """
    from codegen.acquire import acquire
    from codegen.drift import Side, compare

    one_form(as_json, as_markdown)
    releases = acquire(before), acquire(after)
    old, new = (Side(release, _tree(release, out, jobs, as_json).compiled) for release in releases)
    found = compare(old, new)
    show_drift_as(found, as_json, as_markdown)
    raise typer.Exit(DIFFERENT if found.differs else FRESH)


@app.command()
def bump(
    version: Annotated[str, typer.Argument(help="The release to move to.")],
    source: Annotated[
        Path | None, typer.Option(help="A wheel file or a folder with that release, instead of pip's download.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="The release of the tree, if it cannot be downloaded: a wheel file or a folder.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report, and write nothing.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Then verify what changed and record it; needs that release installed.")
    ] = False,
    out: Out = SHIPPED,
    jobs: Jobs = CPUS,
    as_json: Json = False,
    as_markdown: Markdown = False,
) -> None:
    """Move to another release: report what changed, regenerate, and move the pin; all of it is written or nothing.

    The pin is in pyproject.toml (and constraints.txt) beside the generated tree. Exit codes as of drift; with 0 and 1
    everything was written, with 2 nothing.
    """
    from codegen.bump import endpoints, prepare, to_verify, write

    one_form(as_json, as_markdown)
    out = out.resolve()
    if verify:
        if dry_run:
            raise InputError("--dry-run writes nothing that --verify could verify; pass one of them")
        from codegen.verification import check_installed, run_verification

        check_installed(version, out)
    if not dry_run:
        store.recover(out)
    old, new = endpoints(version, out, source, base)
    prepared = prepare(old, new, out, lambda release: _tree(release, out, jobs, as_json))
    changes = None if dry_run else write(prepared, out)
    written = sorted((*changes.created, *changes.updated)) if changes is not None else []
    removed = list(changes.orphaned) if changes is not None else []
    found = prepared.report
    families = {target: names for target in TARGETS if (names := to_verify(found, target))}
    commands = [f"regraft verify --target {target} --record {' '.join(names)}" for target, names in families.items()]
    if not as_json:
        show_drift_as(found, as_json, as_markdown)
        say_beside = warn if as_markdown else say  # the report may go into a file
        if changes is None:
            say_beside("nothing was written (--dry-run)")
        else:
            say_beside(f"{len(written)} files written, {len(removed)} removed; the pin is {found.after}")
        for conflict in prepared.conflicts:
            warn(conflict)
        if commands and changes is not None and not verify:
            say_beside("install that release, then run:\n" + "\n".join(f"  {line}" for line in commands))
    verified = {}
    for target, names in families.items() if verify else ():
        try:
            verified[target] = run_verification(target, names, out, time_limit=TIME_LIMIT, jobs=jobs, record=True)
        except _Interrupted:
            _fail(f"regraft: interrupted; {found.after} is written, and not all of it is verified", INTERRUPTED)
        if not as_json:
            verified[target].show(as_json, as_markdown)
    if as_json:
        plain = {target: one.plain() for target, one in verified.items()}
        rest = {"written": written, "removed": removed, "conflicts": list(prepared.conflicts)}
        print_json({**found.as_dict(), **rest, "verify": commands, "verified": plain})
    failed = not all(one.passed for one in verified.values())
    raise typer.Exit(DIFFERENT if found.differs or prepared.conflicts or failed else FRESH)


def _tree(release: Release, out: Path, jobs: int, quiet: bool) -> Tree:
    """What becomes of a release; what is fresh under ``out`` is not compiled again."""
    with progress(f"compiling {release.version}", quiet) as bar:
        return build(release, out, (), jobs, bar.planned, lambda c: bar.done(c.stem))


def _fail(message: str, code: int) -> NoReturn:
    warn(message)
    raise SystemExit(code)


class _Interrupted(BaseException):
    """Ctrl-C. Not KeyboardInterrupt, which the command line library answers itself, and says nothing of the tree."""


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise _Interrupted


def main() -> None:
    """The console entry point: one place that turns unusable input and interruption into messages and exit codes."""
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except (InputError, Refused, store.StoreError) as error:
        _fail(f"regraft: {error}", UNUSABLE)
    except _Interrupted:
        _fail("regraft: interrupted; the generated tree is as it was", INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    main()
