"""One family's training variant through all its cases and the stages asked for."""

import time
from collections.abc import Callable, Mapping, Sequence

from runtime.verify.cases import DEFAULT, Case
from runtime.verify.factory import CannotBuildError
from runtime.verify.family import Progress, Request, through_cases
from runtime.verify.reference import UpstreamFailsError
from runtime.verify.results import CaseResult, Check, FamilyResult, Status, status_of
from runtime.verify.switches import why_not_here
from runtime.verify.training.scenarios import ESSENTIAL, KERNELS, PACKED, scenarios_for
from runtime.verify.training.subject import Subject, has_effect, prepare
from runtime.verify.training.trial import Patch, Scenario, Trial
from runtime.verify.training.variants import PATCHES, NoVariantError, require_variant

STAGES = ("hf", "packed", "liger")
"""Upstream itself; its padding removed; Liger's kernels too."""


def verify_family(request: Request, progress: Progress = lambda case: None) -> FamilyResult:
    """Runs the cases of a training variant; see `runtime.verify.family.through_cases`."""
    if set(request.stages) - {STAGES[0]} and (why := why_not_here("rmpad", request.family)):
        return FamilyResult(request.family, Status.FAILED, message=why)
    wanted = {stage: patch for stage, patch in PATCHES.items() if stage in request.stages}
    return through_cases(request, lambda case: verify_case(request.family, case, wanted, request.seed), progress)


def verify_case(
    family: str,
    case: Case,
    patches: Mapping[str, Patch] = PATCHES,
    seed: int = 0,
    required: Callable[[str], None] = require_variant,
) -> CaseResult:
    """One configuration in the stages that `patches` names; `required` raises NoVariantError where there is none.

    Everything that goes wrong is in the result.
    """
    started = time.perf_counter()
    try:
        subject = prepare(family, case, seed)
        effect = has_effect(subject) if case.overrides else None
    except (CannotBuildError, UpstreamFailsError) as refusal:
        return CaseResult(case.name, Status.UPSTREAM_REFUSES, message=str(refusal), seconds=_since(started))
    status, message, checks = Status.PASSED, _notes(subject, effect), list[Check]()
    if patches:
        try:
            required(family)
            checks = [check for stage, patch in patches.items() for check in _stage(Trial(subject, stage, patch))]
            status = _whole(checks)
            message = _first_failure(checks) or message
        except NoVariantError as refusal:
            status, message = Status.UNSUPPORTED, str(refusal)
    return CaseResult(case.name, status, tuple(checks), subject.seed, "alone", None, None, message, _since(started))


def _stage(trial: Trial) -> list[Check]:
    return [check for scenario in _scenarios(trial) for check in scenario.run(trial)]


def _scenarios(trial: Trial) -> Sequence[Scenario]:
    default = trial.subject.case.name == DEFAULT
    if trial.stage == "liger":
        return KERNELS if default else ()
    return scenarios_for(trial.subject, PACKED if default else ESSENTIAL)


def _whole(checks: list[Check]) -> Status:
    return status_of([check.status for check in checks])


def _first_failure(checks: list[Check]) -> str:
    failed = next((c for c in checks if c.status not in (Status.PASSED, Status.UPSTREAM_REFUSES)), None)
    if failed is None:
        return ""
    why = failed.message if failed.error is None else f"{failed.quantity} error {failed.error:.1e} {failed.message}"
    return f"{failed.stage}: {failed.scenario}: {why.rstrip()}"


def _notes(subject: Subject, effect: bool | None) -> str:
    notes = []
    if not subject.training:
        notes.append("in evaluation mode, as upstream draws random numbers in training")
    if subject.by_length:
        notes.append("sequences of one length, as the rope depends on it")
    if effect is False:
        notes.append("changes nothing in upstream's logits")
    return "; ".join(notes)


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)
