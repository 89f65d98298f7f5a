"""What verification found, as plain data that JSON can hold."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

from runtime.verify.compare import Divergence


class Status(StrEnum):
    """The end of a check, a case or a family."""

    PASSED = "passed"
    FAILED = "failed"
    UPSTREAM_REFUSES = "upstream refuses"
    """The unmodified model cannot be built or run with these values; there is nothing to compare with."""
    UNSUPPORTED = "unsupported"
    """There is no variant of this family."""
    CRASHED = "crashed"
    TIMED_OUT = "timed out"


@dataclass(frozen=True)
class Check:
    """One scenario in one stage.

    quantity: what was compared; error: of logits relative to the range of upstream's, of losses and gradients as
    `runtime.verify.training.compare` says; inf where something is no number.
    """

    stage: str
    scenario: str
    status: Status
    error: float | None = None
    divergences: tuple[Divergence, ...] = ()
    message: str = ""
    quantity: str = "logits"


@dataclass(frozen=True)
class CaseResult:
    """One configuration of a family.

    seed: of the weights; method: how upstream was asked; margin: upstream's nearest tie relative to the range of its
    logits; variety: different tokens among those it generated.
    """

    case: str
    status: Status
    checks: tuple[Check, ...] = ()
    seed: int = 0
    method: str = ""
    margin: float | None = None
    variety: int | None = None
    message: str = ""
    seconds: float = 0.0

    def worst(self, stage: str, quantities: Collection[str] = ("logits",)) -> float | None:
        """The largest error of some quantities in a stage, or None if none was measured."""
        found = (c.error for c in self.checks if c.stage == stage and c.quantity in quantities)
        return max((error for error in found if error is not None), default=None)


@dataclass(frozen=True)
class FamilyResult:
    """One family. not_varied: fields that its code branches on without another value to try, with the reason."""

    family: str
    status: Status
    cases: tuple[CaseResult, ...] = ()
    not_varied: tuple[tuple[str, str], ...] = ()
    message: str = ""
    seconds: float = 0.0

    def count(self, status: Status) -> int:
        return sum(case.status is status for case in self.cases)

    def worst(self, stage: str, quantities: Collection[str] = ("logits",)) -> float | None:
        return max((e for case in self.cases if (e := case.worst(stage, quantities)) is not None), default=None)

    def stage_status(self, stage: str) -> Status | None:
        """Passed if every check of the stage in every case passed; None if it has none."""
        checks = [check for case in self.cases for check in case.checks if check.stage == stage]
        if not checks:
            return None
        return next((check.status for check in checks if check.status is not Status.PASSED), Status.PASSED)


def status_of(parts: list[Status]) -> Status:
    """Of a whole from its parts: what went wrong first; passed if something passed; else what upstream refused."""
    for bad in (Status.CRASHED, Status.TIMED_OUT, Status.FAILED, Status.UNSUPPORTED):
        if bad in parts:
            return bad
    return Status.PASSED if Status.PASSED in parts else Status.UPSTREAM_REFUSES


def to_json(results: Sequence[FamilyResult]) -> str:
    """One family per line, so that differences between two files are readable."""
    lines = [json.dumps(one, sort_keys=True) for one in as_plain(results)]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def as_plain(results: Sequence[FamilyResult]) -> list[dict[str, Any]]:
    """The results as what JSON can hold."""
    return [{name: _plain(value) for name, value in dataclasses.asdict(result).items()} for result in results]


def _plain(value: Any) -> Any:
    """Enums to their values; floats to four significant digits, those that are no numbers to words (JSON has none)."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
