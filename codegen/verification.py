"""``regraft verify``: hands the families to the runtime's verifier, and records what it found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codegen import store
from codegen.acquire import same_version
from codegen.diagnostics import InputError
from codegen.emit import coverage, manifest, verified
from codegen.emit.drift import markdown_table, section
from codegen.generation import coverage_name
from codegen.presentation import ERR, OUT
from codegen.review import coverage_rows
from codegen.source import PACKAGE, installed

if TYPE_CHECKING:
    from codegen.own.source import OwnSource
    from runtime.verify.results import FamilyResult
    from runtime.verify.targets import Target

ALL, DEFAULT = "all", "default"  # scopes of a record: every case, or the default configuration alone


@dataclass(frozen=True)
class Verified:
    """What a run found, and what it was asked for."""

    results: tuple[FamilyResult, ...]
    target: Target
    stages: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every family passed."""
        return all(r.status.value == "passed" for r in self.results)

    def plain(self) -> list[dict[str, Any]]:
        """One dictionary per family, as JSON holds it."""
        from runtime.verify.results import as_plain

        return as_plain(self.results)

    def markdown(self) -> str:
        """A section with a table for the report of a bump; of a family that did not pass it says why."""
        from runtime.verify.report import measured, one_digit

        shown = measured(self.stages, self.target)
        rows = [
            (
                r.family,
                r.status.value,
                f"{sum(case.status.value == 'passed' for case in r.cases)}/{len(r.cases)}",
                *(one_digit(measure.of(r)) for measure in shown),
                _note(r),
            )
            for r in self.results
        ]
        head = ("family", "result", "cases passed", *(measure.title for measure in shown), "note")
        return "\n" + "\n".join(section(f"Verified: {self.target.name}", markdown_table(head, rows)))

    def show(self, as_json: bool, as_markdown: bool = False) -> None:
        """A table, or JSON with one family per line, or a section of markdown."""
        from runtime.verify.report import summary, table
        from runtime.verify.results import to_json

        if as_json:
            sys.stdout.write(to_json(self.results))
        elif as_markdown:
            sys.stdout.write(self.markdown())
        else:
            OUT.print(table(self.results, self.stages, self.target))
            OUT.print(summary(self.results))


def run_verification(
    target_name: str,
    families: Sequence[str],
    out: Path,
    time_limit: float,
    stages: tuple[str, ...] = (),
    cases: tuple[str, ...] = (),
    jobs: int = 1,
    seed: int = 0,
    record: bool = False,
    own: OwnSource | None = None,
) -> Verified:
    """Verifies families of the tree ``out``, all that were generated where none is named; no stages are all of the
    target's, no cases all. ``own`` is where the models of a package of the user's are. The runtime is imported here and
    nowhere else in the compiler. ``time_limit``: seconds per family.

    Raises InputError for a name that is unknown.
    """
    from runtime.verify.report import Reporter
    from runtime.verify.run import requests_for
    from runtime.verify.run import verify as verify_families
    from runtime.verify.targets import target_named

    try:
        target = target_named(target_name)
    except ValueError as error:
        raise InputError(str(error)) from None
    remembered = manifest.read(out / manifest.NAME)
    generated = sorted(_outputs(remembered, target_name)) if remembered else []
    wanted = list(families) or generated
    if not wanted:
        raise InputError(f"{out} holds no generated family for {target_name}; run regraft generate")
    switches = None
    if own is not None:
        target = _of_package(target, own, out)
        switches = _switches(remembered, target_name)
    try:
        requests_for(wanted, stages, cases, seed, switches, target)
    except ValueError as error:
        raise InputError(str(error)) from None
    if record and (cases not in ((), (DEFAULT,)) or (stages and set(stages) != set(target.stages))):
        raise InputError("only a run of all stages, and of all cases or the default one, can be recorded")
    if record and remembered is not None and not same_version(installed().version, remembered.version):
        raise InputError(
            f"the tree was generated from {remembered.version}, and {installed().version} is installed: what is"
            " measured here cannot be recorded for it"
        )
    with Reporter(ERR, len(wanted)) as reporter:
        results = verify_families(wanted, stages, jobs, cases, seed, switches, time_limit, reporter, target)
    if record:
        _record(results, target, DEFAULT if cases else ALL, out)
    return Verified(tuple(results), target, stages)


def check_installed(version: str, out: Path) -> None:
    """Raises InputError where a tree of that release, in the folder ``out``, cannot be verified: numbers are compared
    with what is installed, and variants are imported from one tree."""
    try:
        have = installed().version
    except InputError:
        have = "none"
    if not same_version(have, version):
        raise InputError(
            f"--verify needs {PACKAGE} {version} installed, and there is {have}; bump without it, install that"
            " release, then run the commands that the report ends with"
        )
    spec = find_spec("generated")
    tree = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    if tree is None or tree.resolve() != out.resolve():
        raise InputError(f"--verify imports the variants of {tree}, not those of {out}")


def _of_package(target: Target, own: OwnSource, out: Path) -> Target:
    """The target, verified with models of the user's: every process loads them first."""
    from runtime.verify.own_models import OwnModel, OwnPackage, verified_by

    models = tuple(OwnModel(f.model_type, f.path.removesuffix(".py"), f.head) for f in own.families)
    loader = own.imported_as.loader.value
    package = OwnPackage(str(out.resolve()), str(own.folder.resolve()), own.package, loader, models)
    try:
        return verified_by(target, package)
    except ValueError as error:
        raise InputError(str(error)) from None


def _switches(remembered: manifest.Manifest | None, target: str) -> dict[str, tuple[str, ...]]:
    """The configuration fields that each family's code branches on."""
    entries = [] if remembered is None else [e for (name, _), e in remembered.entries.items() if name == target]
    return {family.model_type: e.compiled.switches for e in entries for family in e.compiled.generated}


def _outputs(remembered: manifest.Manifest, target: str) -> dict[str, str]:
    """The digest of the text that each family was generated into, for one target."""
    entries = [entry for (name, _), entry in remembered.entries.items() if name == target]
    return {family.model_type: entry.output for entry in entries for family in entry.compiled.generated}


def _record(results: Sequence[FamilyResult], target: Target, scope: str, out: Path) -> None:
    """Adds the results to VERIFIED.toml and renders COVERAGE.md from it. A run of the default case alone never takes
    the place of a passed run of all cases of the same text."""
    remembered = manifest.read(out / manifest.NAME)
    if remembered is None:
        raise InputError(f"{out} holds no manifest; run regraft generate")
    outputs = _outputs(remembered, target.name)
    records = {name: dict(rows) for name, rows in verified.read(out / verified.NAME).items()}
    mine = records.setdefault(target.name, {})
    for result in results:
        if result.family in outputs:
            new = _of(result, target, outputs[result.family], scope)
            old = mine.get(result.family)
            if old is None or old.output != new.output or old.scope != ALL or scope == ALL or not new.passed:
                mine[result.family] = new
    for gone in set(mine) - set(outputs):
        del mine[gone]
    text = verified.render(records)
    store.commit(out, store.plan(out, {verified.NAME: text}, ()))
    page = coverage.render(remembered.version, coverage_rows(out), remembered.own)
    store.commit(out, store.plan(out, {coverage_name(): page}, ()))


def _of(result: FamilyResult, target: Target, output: str, scope: str) -> verified.Record:
    ran = sum(1 for c in result.cases if c.status.value == "passed")
    return verified.Record(
        output,
        result.status.value == "passed",
        ran,
        {measure.name: error for measure in target.measures if (error := measure.of(result)) is not None},
        _note(result),
        scope,
    )


def _note(result: FamilyResult) -> str:
    """Why a family did not pass, in a line; nothing of one that did."""
    bad = [c for c in result.cases if c.status.value not in ("passed", "upstream refuses")]
    note = "; ".join(f"{c.case}: {c.message}" for c in bad[:3]) or (
        result.message if result.status.value != "passed" else ""
    )
    return " ".join(note.split())[:200]
