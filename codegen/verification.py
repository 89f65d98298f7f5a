"""``regraft verify``: hands the families to the runtime's verifier, and records what it found."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from codegen import store
from codegen.diagnostics import InputError
from codegen.emit import coverage, manifest, verified
from codegen.generation import coverage_name
from codegen.presentation import ERR, OUT
from codegen.review import coverage_rows

if TYPE_CHECKING:
    from codegen.own.source import OwnSource
    from runtime.verify.results import FamilyResult
    from runtime.verify.targets import Target

ALL, DEFAULT = "all", "default"  # scopes of a record: every case, or the default configuration alone


def run_verification(
    target_name: str,
    families: Sequence[str],
    stages: tuple[str, ...],
    cases: tuple[str, ...],
    jobs: int,
    seed: int,
    time_limit: float,
    record: bool,
    out: Path,
    as_json: bool,
    own: OwnSource | None = None,
) -> bool:
    """Whether every family passed; no families are all that were generated, no stages all of the target's. ``own`` is
    where the models of a package of the user's are. The runtime is imported here and nowhere else in the compiler."""
    from runtime.verify.report import Reporter, summary, table
    from runtime.verify.results import to_json
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
    with Reporter(ERR, len(wanted)) as reporter:
        results = verify_families(wanted, stages, jobs, cases, seed, switches, time_limit, reporter, target)
    if as_json:
        sys.stdout.write(to_json(results))
    else:
        OUT.print(table(results, stages, target))
        OUT.print(summary(results))
    if record:
        _record(results, target, DEFAULT if cases else ALL, out)
    return all(r.status.value == "passed" for r in results)


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
    text = verified.render("regraft verify --all --record --target TARGET", records)
    store.commit(out, store.plan(out, {verified.NAME: text}, ()))
    page = coverage.render(remembered.version, coverage_rows(out), remembered.own)
    store.commit(out, store.plan(out, {coverage_name(): page}, ()))


def _of(result: FamilyResult, target: Target, output: str, scope: str) -> verified.Record:
    bad = [c for c in result.cases if c.status.value not in ("passed", "upstream refuses")]
    note = "; ".join(f"{c.case}: {c.message}" for c in bad[:3]) or (
        result.message if result.status.value != "passed" else ""
    )
    ran = sum(1 for c in result.cases if c.status.value == "passed")
    return verified.Record(
        output,
        result.status.value == "passed",
        ran,
        {measure.name: error for measure in target.measures if (error := measure.of(result)) is not None},
        " ".join(note.split())[:200],
        scope,
    )
