"""One family through all its cases and the stages asked for."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runtime.verify.cases import DEFAULT, Case, cases_for
from runtime.verify.factory import CannotBuildError
from runtime.verify.reference import UpstreamFailsError
from runtime.verify.results import CaseResult, Check, FamilyResult, Status, status_of
from runtime.verify.scenarios import ESSENTIAL, SCENARIOS, Scenario
from runtime.verify.subject import Subject, has_effect, prepare
from runtime.verify.switches import why_not_here

STAGES = ("hf", "kv", "ort")
"""Upstream itself; the variant in torch; its exported file in ONNX Runtime."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to verify of one family.

    switches: the configuration fields its code branches on; only: names of the cases to run, or () for all of them.
    """

    family: str
    stages: tuple[str, ...] = STAGES
    switches: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    seed: int = 0


def verify_family(request: Request, progress: Progress = lambda case: None) -> FamilyResult:
    """Runs the cases of an inference variant; see `through_cases`."""
    if set(request.stages) - {STAGES[0]} and (why := why_not_here("qeff", request.family)):
        return FamilyResult(request.family, Status.FAILED, message=why)

    def one(case: Case) -> CaseResult:
        scenarios = SCENARIOS if case.name == DEFAULT else ESSENTIAL
        return verify_case(request.family, case, request.stages, request.seed, scenarios)

    return through_cases(request, one, progress)


def through_cases(
    request: Request, verify_one: Callable[[Case], CaseResult], progress: Progress = lambda case: None
) -> FamilyResult:
    """Runs the cases one after the other; `progress` is told the name of each before it starts.

    Nothing about the family's models is raised: it ends up in the result. Raises KeyError for an unknown type.
    """
    started = time.perf_counter()
    try:
        listed = cases_for(request.family, request.switches)
    except CannotBuildError as refusal:
        return _ended(request, Status.UPSTREAM_REFUSES, str(refusal), started)
    chosen = [case for case in listed.cases if not request.only or case.name in request.only]
    if not chosen:
        names = ", ".join(case.name for case in listed.cases)
        return _ended(request, Status.FAILED, f"has no case named {', '.join(request.only)}; it has {names}", started)
    results: list[CaseResult] = []
    for case in chosen:
        progress(case.name)
        result = verify_one(case)
        results.append(result)
        if case.name == DEFAULT and result.status in (Status.UNSUPPORTED, Status.UPSTREAM_REFUSES):
            break  # the other cases can only say the same
    not_varied = tuple((item.field, item.reason) for item in listed.not_varied)
    status = status_of([result.status for result in results])
    message = next((result.message for result in results if result.status is status and result.message), "")
    return FamilyResult(
        request.family, status, tuple(results), not_varied, message, round(time.perf_counter() - started, 2)
    )


def verify_case(
    family: str,
    case: Case,
    stages: Sequence[str],
    seed: int = 0,
    scenarios: tuple[Scenario, ...] = SCENARIOS,
) -> CaseResult:
    """One configuration through the stages, fed as the scenarios say; see `verify_family` about errors."""
    started = time.perf_counter()
    try:
        subject = prepare(family, case, seed)
        effect = has_effect(subject) if case.overrides else None
    except (CannotBuildError, UpstreamFailsError) as refusal:
        seconds = round(time.perf_counter() - started, 2)
        return CaseResult(case.name, Status.UPSTREAM_REFUSES, message=str(refusal), seconds=seconds)
    wanted = tuple(stage for stage in ("kv", "ort") if stage in stages)
    checks: list[Check] = []
    status, message = Status.PASSED, subject.expected.note
    if effect is False:
        message = "; ".join(filter(None, (message, "changes nothing in upstream's logits")))
    if wanted:
        status, message, checks = _checks(subject, wanted, scenarios, message)
    return CaseResult(
        case.name,
        status,
        tuple(checks),
        subject.seed,
        subject.expected.method.value,
        float(subject.expected.margins().min()),
        subject.expected.variety,
        message,
        round(time.perf_counter() - started, 2),
    )


def _checks(
    subject: Subject, stages: tuple[str, ...], scenarios: tuple[Scenario, ...], note: str
) -> tuple[Status, str, list[Check]]:
    from runtime.qeff.transforms import UnsupportedFamilyError
    from runtime.verify.continuous import check_continuous
    from runtime.verify.interface import check_interface
    from runtime.verify.stages import check_stages, describe

    checks: list[Check] = []
    try:
        checks += check_stages(subject, stages, scenarios)
        if subject.case.name == DEFAULT:
            checks += check_continuous(subject, stages)
            checks += [check_interface(subject)] if "kv" in stages else []
    except UnsupportedFamilyError as refusal:
        return Status.UNSUPPORTED, refusal.reason, checks
    except Exception as failure:  # the variant cannot even be made
        return Status.FAILED, describe(failure), checks
    status = status_of([check.status for check in checks])
    failed = next((check for check in checks if check.status is not Status.PASSED), None)
    return status, note if failed is None else f"{failed.stage}: {failed.scenario}: {_why(failed)}", checks


def _why(check: Check) -> str:
    if check.message and check.error is None:
        return check.message
    tokens = "".join(
        f"; row {d.row} differs at step {d.step} ({d.found} instead of {d.expected}, margin {d.margin:.1e})"
        for d in check.divergences
    )
    return f"error {check.error:.1e}{tokens}"


def _ended(request: Request, status: Status, message: str, started: float) -> FamilyResult:
    return FamilyResult(request.family, status, message=message, seconds=round(time.perf_counter() - started, 2))
