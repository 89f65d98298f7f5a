"""What happens to a sequence when another one of the batch changes: nothing."""

from collections.abc import Callable, Iterator

import torch

from runtime.verify.training.compare import ISOLATION
from runtime.verify.training.sequences import Batch, Sample, padded_right, replaced
from runtime.verify.training.trial import Measured, Trial


def changing(index: int) -> Callable[[Trial], Iterator[Measured]]:
    """The check that replaces the tokens of one sample: 0 for the first, -1 for the last."""

    @torch.no_grad()
    def measure(trial: Trial) -> Iterator[Measured]:
        samples = trial.subject.samples
        at = index % len(samples)
        before, after = _logits(trial, samples), _logits(trial, replaced(samples, at, trial.subject.seed))
        span = float(max(one.max() for one in before)) - float(min(one.min() for one in before))
        moved = [float((a - b).abs().max()) / span for a, b in zip(after, before, strict=True)]
        if not moved[at] > 1e-3:
            raise AssertionError("the logits of the changed sequence itself did not change")
        others = [error for i, error in enumerate(moved) if i != at]
        yield Measured("isolation", float("inf") if any(e != e for e in others) else max(others), ISOLATION)

    return measure


def _logits(trial: Trial, samples: tuple[Sample, ...]) -> list[torch.Tensor]:
    batch: Batch = padded_right(samples)
    return trial.logits(batch, trial.variant()(**batch.inputs))
