"""Verifies families against unmodified upstream: the entry point of `regraft verify` and of tests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from runtime.verify.factory import model_types
from runtime.verify.family import Request
from runtime.verify.pool import Event, run_all
from runtime.verify.results import FamilyResult, to_json
from runtime.verify.switches import recorded_switches
from runtime.verify.targets import QEFF, Target

TIME_LIMIT = 900.0
"""Seconds per family with all its cases; a family with default case only takes about five."""


def requests_for(
    families: Iterable[str],
    stages: Sequence[str] = (),
    cases: Sequence[str] = (),
    seed: int = 0,
    switches: Mapping[str, Sequence[str]] | None = None,
    target: Target = QEFF,
) -> list[Request]:
    """What will be verified.

    stages: of the target's, () for all; cases: names of cases (`runtime.verify.cases`), () for all; switches:
    configuration fields by family, by default those that the compiler recorded. Raises ValueError for a stage or a
    family that does not exist, with the names that do or look like it.
    """
    if unknown := [stage for stage in stages if stage not in target.stages]:
        raise ValueError(f"unknown stage {unknown[0]!r} of {target.name}; there are {', '.join(target.stages)}")
    depth = tuple(stages) or target.stages
    fields = recorded_switches(target.name) if switches is None else switches
    known = model_types()
    wanted = list(dict.fromkeys(families))
    for family in wanted:
        if family not in known:
            raise ValueError(f"unknown family {family!r}{_near(family, known)}")
    return [Request(family, depth, tuple(fields.get(family, ())), tuple(cases), seed) for family in wanted]


def verify(
    families: Iterable[str],
    stages: Sequence[str] = (),
    jobs: int = 1,
    cases: Sequence[str] = (),
    seed: int = 0,
    switches: Mapping[str, Sequence[str]] | None = None,
    time_limit: float = TIME_LIMIT,
    on_event: Callable[[Event], None] = lambda event: None,
    target: Target = QEFF,
) -> list[FamilyResult]:
    """Verifies families in `jobs` processes and returns their results in the order given.

    What a family does (a wrong result, an exception, a crash, no end) is in its result. For the arguments and
    ValueError see `requests_for`; `time_limit` is seconds per family; `on_event` is called in this process.
    """
    requests = requests_for(families, stages, cases, seed, switches, target)
    environment = target.environment_for(stages or target.stages)
    return run_all(requests, jobs, time_limit, on_event, target.work, environment)


def write_results(results: list[FamilyResult], path: Path) -> None:
    """Writes the results as JSON, one family per line, whole or not at all. Raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(to_json(results), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _near(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(name, known, n=3)
    return f"; did you mean {', '.join(found)}?" if found else "; it is not in upstream's causal-LM mapping"
