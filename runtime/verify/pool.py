"""Families in parallel processes, each with a time limit; one that crashes or hangs takes no other with it."""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any

from runtime.verify.family import Request, verify_family
from runtime.verify.results import CaseResult, FamilyResult, Status

_POLL_SECONDS = 0.5
_START_SECONDS = 300.0
"""For a worker's imports, on top of the time that a family is given."""
_READY = ""
"""A worker's first message; all others are names of cases or results."""
_QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of the workers: one thread each, as the processes are what runs in parallel, and no network."""

_NOTHING: Mapping[str, str] = {}

Work = Callable[[Request, Callable[[str], None]], FamilyResult]


@dataclass(frozen=True)
class Started:
    """A case of a family was begun."""

    family: str
    case: str


@dataclass(frozen=True)
class Finished:
    """A family has its result."""

    result: FamilyResult


Event = Started | Finished


def run_all(
    requests: Iterable[Request],
    jobs: int,
    time_limit: float,
    on_event: Callable[[Event], None],
    work: Work = verify_family,
    environment: Mapping[str, str] = _NOTHING,
) -> list[FamilyResult]:
    """The results in the order of the requests. `on_event` is called in this process as things happen.

    A worker process is kept for many families, as importing upstream takes longer than verifying one. `time_limit`
    seconds are allowed per family. `work` must be importable by name; `environment` is the workers', beyond
    the usual. On an interrupt all workers are ended before it is raised on. Raises ValueError for jobs < 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    pending = list(enumerate(requests))[::-1]
    results: dict[int, FamilyResult] = {}
    workers: list[_Worker] = [_Worker(work, environment) for _ in range(min(jobs, len(pending)))]
    total = len(pending)

    def finish(index: int, result: FamilyResult) -> None:
        results[index] = result
        on_event(Finished(result))

    try:
        while len(results) < total:
            for worker in workers:
                if worker.idle and pending:
                    worker.start(*pending.pop())
            ready = wait([worker.channel for worker in workers if not worker.idle], timeout=_POLL_SECONDS)
            for position, worker in enumerate(workers):
                if worker.idle:
                    continue
                ended: tuple[int, FamilyResult] | None = None
                if worker.channel in ready:
                    ended = worker.receive(on_event)
                elif worker.elapsed > time_limit:
                    ended = worker.give_up(Status.TIMED_OUT, f"not done after {time_limit:g} s")
                if ended is not None:
                    finish(*ended)
                    if worker.dead:
                        workers[position] = _Worker(work, environment)
    finally:
        for worker in workers:
            worker.close()
    return [results[index] for index in sorted(results)]


class _Worker:
    """A process that verifies one family after the other, and what it is doing."""

    def __init__(self, work: Work, environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        with _environment({**_QUIET, **environment}):
            self._process: SpawnProcess = context.Process(target=_serve, args=(theirs, work), daemon=True)
            self._process.start()
        theirs.close()
        self._task: tuple[int, Request] | None = None
        self._since = 0.0
        self._ready = self.dead = False
        self._case = ""

    @property
    def idle(self) -> bool:
        return self._task is None

    @property
    def elapsed(self) -> float:
        """Seconds since the task began; negative while the process may still be starting."""
        return time.monotonic() - self._since

    def start(self, index: int, request: Request) -> None:
        self._task, self._case = (index, request), ""
        self._since = time.monotonic() + (0.0 if self._ready else _START_SECONDS)
        self.channel.send(request)

    def receive(self, on_event: Callable[[Event], None]) -> tuple[int, FamilyResult] | None:
        """Reads one message; a result ends the task, and so does the process ending."""
        if self._task is None:
            raise AssertionError("a worker without a task said something")
        index, request = self._task
        try:
            message: Any = self.channel.recv()
        except (EOFError, OSError):
            self._process.join()
            return self.give_up(Status.CRASHED, f"the process ended with exit code {self._process.exitcode}")
        if isinstance(message, FamilyResult):
            self._task = None
            return index, message
        if message == _READY:
            self._ready, self._since = True, time.monotonic()
            return None
        self._case = str(message)
        on_event(Started(request.family, self._case))
        return None

    def give_up(self, status: Status, message: str) -> tuple[int, FamilyResult]:
        """Ends the process and makes the result that its task gets instead."""
        if self._task is None:
            raise AssertionError("nothing to give up")
        index, request = self._task
        seconds = round(max(self.elapsed, 0.0), 2)
        self.close()
        self.dead, self._task = True, None
        where = f" in case {self._case}" if self._case else ""
        cases = (CaseResult(self._case, status, message=message, seconds=seconds),) if self._case else ()
        return index, FamilyResult(request.family, status, cases, message=message + where, seconds=seconds)

    def close(self) -> None:
        self.channel.close()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class _environment:
    """The workers' environment in this process for as long as one is started: a spawned process inherits it."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._values}
        os.environ.update(self._values)

    def __exit__(self, *error: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _serve(channel: Connection, work: Work) -> None:
    """The worker's loop; it ends with its channel."""
    import signal
    import warnings

    import torch
    import transformers

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted and ends its workers
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    channel.send(_READY)
    while True:
        try:
            request: Request = channel.recv()
            channel.send(_guarded(work, request, channel))
        except (EOFError, OSError):
            return


def _guarded(work: Work, request: Request, channel: Connection) -> FamilyResult:
    try:
        return work(request, channel.send)
    except Exception as failure:
        message = f"{type(failure).__name__}: {' '.join(str(failure).split())[:400]}"
        return FamilyResult(request.family, Status.CRASHED, message=message)
