"""What a check works with: a subject, and variants of its model."""

import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from runtime.verify.results import Check, Status
from runtime.verify.training.compare import TOLERANCE, logits_error, loss_error, tensors_error
from runtime.verify.training.sequences import Batch
from runtime.verify.training.subject import Reference, Subject, gradients

Undo = Callable[[], None]
Patch = Callable[[str, nn.Module], Undo]
"""Turns a model of a family into its variant, in place; what it returns turns it back."""


class NothingToCompareError(RuntimeError):
    """Upstream does not do what a check compares with; the message says what."""


@dataclass(frozen=True)
class Measured:
    """One number that a check found: an error of `logits`, `loss`, `grad`, ..., and how large it may be."""

    quantity: str
    error: float
    tolerance: float = TOLERANCE
    note: str = ""


@dataclass(frozen=True)
class Trial:
    """A subject in one stage."""

    subject: Subject
    stage: str
    patch: Patch

    def variant(self) -> Any:
        """A new variant with the subject's weights, in the subject's mode."""
        model = self.subject.upstream()
        self.patch(self.subject.family, model)
        return model

    def logits(self, batch: Batch, output: Any) -> list[torch.Tensor]:
        """The logits of an output by sample, in the layout that the subject's mode asks for."""
        layout = batch.packed_logits if self.subject.training else batch.padded_logits
        return layout(output.logits.detach())


@dataclass(frozen=True)
class Scenario:
    """A named check: how a trial is fed, and what is measured."""

    name: str
    measure: Callable[[Trial], Iterable[Measured]]

    def run(self, trial: Trial) -> list[Check]:
        """One check per number; an exception is one failed check."""
        checks: list[Check] = []
        try:
            for one in self.measure(trial):
                status = Status.PASSED if one.error <= one.tolerance else Status.FAILED
                checks.append(Check(trial.stage, self.name, status, one.error, (), one.note, one.quantity))
        except NothingToCompareError as reason:
            checks.append(Check(trial.stage, self.name, Status.UPSTREAM_REFUSES, message=str(reason)))
        except Exception as failure:
            checks.append(Check(trial.stage, self.name, Status.FAILED, message=explain(failure)))
        return checks


def numbers(trial: Trial, batch: Batch, model: Any = None, expected: Reference | None = None) -> Iterator[Measured]:
    """Logits of every token, loss and all gradients of a new variant (or the model given) for one batch.

    Where a fused loss leaves no logits, those of a second forward pass without labels are taken.
    """
    wanted = trial.subject.expected if expected is None else expected
    model = trial.variant() if model is None else model
    output = model(**batch.inputs, labels=batch.labels)
    shown = output if output.logits is not None else model(**batch.inputs)
    yield Measured("logits", logits_error(trial.logits(batch, shown), wanted.logits))
    yield Measured("loss", loss_error(output.loss.detach(), wanted.loss))
    output.loss.backward()
    yield gradient(model, wanted)


def gradient(model: nn.Module, expected: Reference) -> Measured:
    """The error of a model's gradients."""
    error, name = tensors_error(gradients(model), expected.gradients)
    return Measured("grad", error, note=name)


def explain(failure: BaseException) -> str:
    """An exception as one line, with the innermost places it came through."""
    frames = traceback.extract_tb(failure.__traceback__)[-3:]
    places = " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:400]} ({places})"
