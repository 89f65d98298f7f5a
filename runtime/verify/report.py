"""Verification results for people: a line as each family ends, a table at the end."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from runtime.verify.pool import Event, Finished, Started
from runtime.verify.results import FamilyResult, Status
from runtime.verify.targets import Measure, Target

_STYLES = {
    Status.PASSED: "green",
    Status.FAILED: "bold red",
    Status.CRASHED: "bold red",
    Status.TIMED_OUT: "bold red",
    Status.UPSTREAM_REFUSES: "yellow",
    Status.UNSUPPORTED: "yellow",
}


class Reporter:
    """Shows events: a progress bar on a terminal, one plain line per family otherwise. A context manager."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._current: dict[str, str] = {}
        self._progress = Progress(
            TextColumn("verify"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[current]}", style="dim"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("verify", total=total, current="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        match event:
            case Started(family, case):
                self._current[family] = case
            case Finished(result):
                self._current.pop(result.family, None)
                self._progress.advance(self._task)
                self._console.print(_line(result), highlight=False, soft_wrap=True)
        current = "  ".join(f"{family}: {case}" for family, case in sorted(self._current.items()))
        self._progress.update(self._task, current=current)


def _line(result: FamilyResult) -> Text:
    text = Text(f"{result.family:<20} ")
    text.append(result.status.value, style=_STYLES[result.status])
    text.append(f"  {_counts(result)}  {result.seconds:.1f} s")
    if result.message and result.status is not Status.PASSED:
        text.append(f"  {result.message}")
    return text


def _counts(result: FamilyResult) -> str:
    parts = [f"{result.count(Status.PASSED)}/{len(result.cases)} cases"]
    if refused := result.count(Status.UPSTREAM_REFUSES):
        parts.append(f"{refused} refused by upstream")
    return ", ".join(parts)


def measured(stages: Sequence[str], target: Target) -> list[Measure]:
    """The errors that a table of these stages has, () for all of them."""
    return [measure for measure in target.measures if not stages or measure.stage in stages]


def table(results: Sequence[FamilyResult], stages: Sequence[str], target: Target) -> Table:
    """Families by rows; the largest errors measured in the stages, () for all of them."""
    shown = measured(stages, target)
    grid = Table(title="Verification against upstream", title_justify="left")
    grid.add_column("family", no_wrap=True)
    grid.add_column("result", no_wrap=True)
    grid.add_column("cases passed", justify="right", no_wrap=True)
    grid.add_column("upstream refuses", justify="right")
    for measure in shown:
        grid.add_column(measure.title, justify="right", min_width=6)
    grid.add_column("s", justify="right", no_wrap=True)
    for result in results:
        grid.add_row(
            result.family,
            Text(result.status.value, style=_STYLES[result.status]),
            f"{result.count(Status.PASSED)}/{len(result.cases)}",
            str(result.count(Status.UPSTREAM_REFUSES)),
            *(one_digit(measure.of(result)) for measure in shown),
            f"{result.seconds:.0f}",
        )
    return grid


def one_digit(worst: float | None) -> str:
    """An error as tables show it; a dash where nothing was measured."""
    return "-" if worst is None else f"{worst:.0e}"


def summary(results: Sequence[FamilyResult]) -> str:
    """One line: how many families ended how."""
    counts = ((status, sum(result.status is status for result in results)) for status in Status)
    return f"{len(results)} families: " + ", ".join(f"{count} {status.value}" for status, count in counts if count)
