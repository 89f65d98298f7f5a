"""What a rewritten upstream file and a variant compute: each in a process of its own, in which both texts stand in the
place of the installed ones.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import sys
import tempfile
import traceback
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT = 120
"""Seconds that a trial may take; a rewritten loop may have no end."""


@dataclass(frozen=True)
class Trial:
    """One family's upstream text and variant text for a target; `variant` "" asks upstream alone."""

    family: str
    path: str
    target: str
    upstream: str
    variant: str = ""


@dataclass(frozen=True)
class Found:
    """What one trial found.

    upstream: the numbers of upstream, rounded to what matters, or "" where it does not run; agrees: whether the variant
    has them; message: the first check that failed, or why upstream does not run; stops: whether the variant raised an
    error there.
    """

    upstream: str
    agrees: bool
    message: str = ""
    stops: bool = False


class _Texts(importlib.abc.MetaPathFinder):
    """Finds modules in files of a folder."""

    def __init__(self, files: dict[str, Path]) -> None:
        self._files = files

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        file = self._files.get(fullname)
        return None if file is None else importlib.util.spec_from_file_location(fullname, file)


def measure(trials: Iterable[Trial], jobs: int) -> Iterator[tuple[Trial, Found]]:
    """Runs trials in forked processes, so that each sees its own texts and libraries are imported once."""
    import runtime.verify.family
    import runtime.verify.training.family  # noqa: F401

    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for trial, pending in [(trial, pool.apply_async(run, (trial,))) for trial in trials]:
            try:
                yield trial, pending.get(timeout=LIMIT * 10)
            except multiprocessing.TimeoutError:
                yield trial, Found("", False, "no end")


def run(trial: Trial) -> Found:
    """Measures in this process, which must not have imported the modules yet and is not to be used afterwards."""
    import signal

    import torch

    torch.set_num_threads(1)
    signal.alarm(LIMIT)
    signal.signal(signal.SIGALRM, _too_long)
    stem = Path(trial.path).stem
    with tempfile.TemporaryDirectory(prefix="regraft-numbers-") as folder:
        texts = {"transformers." + trial.path.removesuffix(".py").replace("/", "."): trial.upstream}
        if trial.variant:
            texts[f"generated.{trial.target}.{stem}"] = trial.variant
        files = {name: Path(folder) / f"{index}" / f"{stem}.py" for index, name in enumerate(texts)}
        for name, file in files.items():
            assert name not in sys.modules, f"{name} is imported already"
            file.parent.mkdir()
            file.write_text(texts[name], "utf-8")
        sys.meta_path.insert(0, _Texts(files))
        try:
            found = {"qeff": _inference, "rmpad": _training}[trial.target](trial)
        except Exception as failure:
            last = traceback.extract_tb(failure.__traceback__)[-1]
            return Found("", False, f"{type(failure).__name__}: {str(failure)[:200]} ({last.name})")
        if found.upstream:
            assert all(name in sys.modules for name in texts), "a text was not used"
        return found


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError("no end")


def _inference(trial: Trial) -> Found:
    from runtime.verify.cases import DEFAULT, cases_for
    from runtime.verify.results import Status
    from runtime.verify.scenarios import ESSENTIAL
    from runtime.verify.stages import check_stages
    from runtime.verify.subject import prepare

    case = next(c for c in cases_for(trial.family, ()).cases if c.name == DEFAULT)
    subject = prepare(trial.family, case)
    numbers = _rounded([subject.expected.logits])
    if not trial.variant:
        return Found(numbers, True)
    checks = check_stages(subject, ("kv",), ESSENTIAL)
    failed = next((c for c in checks if c.status is not Status.PASSED), None)
    return Found(
        numbers, failed is None, "" if failed is None else f"{failed.scenario}: {failed.error} {failed.message}"
    )


def _training(trial: Trial) -> Found:
    from runtime.verify.cases import DEFAULT, cases_for
    from runtime.verify.results import Status
    from runtime.verify.training.scenarios import ESSENTIAL, scenarios_for
    from runtime.verify.training.subject import prepare
    from runtime.verify.training.trial import Trial as Stage
    from runtime.verify.training.variants import packed

    case = next(c for c in cases_for(trial.family, ()).cases if c.name == DEFAULT)
    subject = prepare(trial.family, case)
    numbers = _rounded([*subject.expected.logits, *subject.expected.gradients.values()])
    if not trial.variant:
        return Found(numbers, True)
    stage = Stage(subject, "packed", packed)
    checks = [check for scenario in scenarios_for(subject, ESSENTIAL) for check in scenario.run(stage)]
    failed = next((c for c in checks if c.status not in (Status.PASSED, Status.UPSTREAM_REFUSES)), None)
    why = "" if failed is None else f"{failed.scenario}: {failed.quantity} {failed.error} {failed.message[:300]}"
    return Found(numbers, failed is None, why, failed is not None and failed.error is None)


def _rounded(tensors: Iterable[object]) -> str:
    """Sums of absolute values, to four digits: what differs in them differs by more than rounding."""
    import torch

    found = []
    for tensor in tensors:
        assert isinstance(tensor, torch.Tensor)
        flat = tensor.detach().double().flatten()
        weights = torch.arange(1, flat.numel() + 1, dtype=torch.float64)
        found.append(f"{float((flat.abs() * weights).sum()):.3e}")
    return " ".join(found)
