"""Verifies families against unmodified upstream: the entry point of `regraft verify` and of tests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from runtime.verify.factory import model_types
from runtime.verify.family import STAGES, Request
from runtime.verify.pool import Event, run_all
from runtime.verify.results import FamilyResult, to_json
from runtime.verify.switches import recorded_switches

TIME_LIMIT = 900.0
"""Seconds per family with all its cases; a family with default case only takes about five."""


def requests_for(
    families: Iterable[str],
    stages: Sequence[str] = STAGES,
    cases: Sequence[str] = (),
    seed: int = 0,
    switches: Mapping[str, Sequence[str]] | None = None,
) -> list[Request]:
    """What will be verified.

    cases: names of cases (`runtime.verify.cases`), () for all; switches: configuration fields by family, by default
    those that the compiler recorded. Raises ValueError for a stage or a family that does not exist, with the names
    that do or look like it.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ValueError(f"unknown stage {unknown[0]!r}; there are {', '.join(STAGES)}")
    fields = recorded_switches() if switches is None else switches
    known = model_types()
    wanted = list(dict.fromkeys(families))
    for family in wanted:
        if family not in known:
            raise ValueError(f"unknown family {family!r}{_near(family, known)}")
    return [Request(family, tuple(stages), tuple(fields.get(family, ())), tuple(cases), seed) for family in wanted]


def verify(
    families: Iterable[str],
    stages: Sequence[str] = STAGES,
    jobs: int = 1,
    cases: Sequence[str] = (),
    seed: int = 0,
    switches: Mapping[str, Sequence[str]] | None = None,
    time_limit: float = TIME_LIMIT,
    on_event: Callable[[Event], None] = lambda event: None,
) -> list[FamilyResult]:
    """Verifies families in `jobs` processes and returns their results in the order given.

    What a family does (a wrong result, an exception, a crash, no end) is in its result. For the arguments and
    ValueError see `requests_for`; `time_limit` is seconds per family; `on_event` is called in this process.
    """
    return run_all(requests_for(families, stages, cases, seed, switches), jobs, time_limit, on_event)


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
