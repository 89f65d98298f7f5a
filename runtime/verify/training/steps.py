"""Several steps: gradients accumulated over micro-batches, and real training with an optimizer."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runtime.verify.training.compare import TRAINED, loss_error, tensors_error
from runtime.verify.training.sequences import Sample, labelled_padding, padded_right
from runtime.verify.training.subject import each_alone
from runtime.verify.training.trial import Measured, NothingToCompareError, Trial, gradient

EPOCHS = 2

_Step = Callable[[Any, torch.optim.AdamW, Sequence[Sample]], torch.Tensor]

_FIRST = 2
_LEARNING_RATE = 3e-4
_EPSILON = 1e-3
"""With Adam's usual 1e-8 a number whose gradient is zero but for rounding moves by a full step in a direction that
rounding decides, in upstream too.
"""
_NUDGE = 1e-7
_ATTEMPTS = 3


def accumulation(trial: Trial) -> Iterator[Measured]:
    """Two micro-batches whose losses are divided by the targets of both: loss and gradients add up to the whole's."""
    samples = trial.subject.samples
    targets = torch.tensor(sum(sample.targets for sample in samples))
    if not divides_by_items(trial):
        raise NothingToCompareError("upstream does not divide by num_items_in_batch")
    model = trial.variant()
    total = torch.zeros(())
    for part in (samples[:_FIRST], samples[_FIRST:]):
        batch = labelled_padding(padded_right(part))
        loss = model(**batch.inputs, labels=batch.labels, num_items_in_batch=targets).loss
        loss.backward()
        total += loss.detach()
    yield Measured("loss", loss_error(total, trial.subject.expected.loss))
    yield gradient(model, trial.subject.expected)


@torch.no_grad()
def divides_by_items(trial: Trial) -> bool:
    """Whether upstream's loss is the sum over targets divided by `num_items_in_batch` where that is given."""
    sample = max(trial.subject.samples, key=lambda one: one.targets)
    ids, labels = torch.tensor([sample.tokens]), torch.tensor([sample.labels])
    mean = trial.subject.upstream()(input_ids=ids, labels=labels, use_cache=False).loss
    items = torch.tensor(7 * sample.targets)
    try:
        loss = trial.subject.upstream()(input_ids=ids, labels=labels, use_cache=False, num_items_in_batch=items).loss
    except Exception:
        return False
    return bool(torch.isclose(loss * 7, mean, rtol=1e-4))


def training(trial: Trial) -> Iterator[Measured]:
    """Two epochs over two batches with AdamW against upstream on the same sequences one at a time, the losses weighted
    by targets: the loss of every step, and what was added to the parameters.

    Where experts are chosen, a difference in rounding may choose others some steps later, and all numbers part. So
    upstream is trained once more from weights that are nudged by 1e-7: sequences for which that matters are replaced
    by others, and no more than that is asked of the variant.
    """
    for attempt in range(_ATTEMPTS):
        batches = _batches(trial, attempt)
        expected = _trained(trial.subject.upstream(), _step_alone, batches)
        nudged = _trained(_nudged(trial.subject.upstream()), _step_alone, batches)
        own = tensors_error(nudged.added, expected.added)[0]
        if own <= TRAINED / 2:
            break
    found = _trained(trial.variant(), _step, batches)
    yield Measured("trained loss", max(map(loss_error, found.losses, map(float, expected.losses))))
    error, name = tensors_error(found.added, expected.added)
    yield Measured("parameters", error, max(TRAINED, own), name)


@dataclass(frozen=True)
class _Trained:
    """The loss of each step, and what all steps together added to the parameters."""

    losses: list[torch.Tensor]
    added: dict[str, torch.Tensor]


def _batches(trial: Trial, attempt: int) -> list[tuple[Sample, ...]]:
    """Two batches, the first other than the subject's from the second attempt on, as often as there are epochs."""
    first = trial.subject.samples
    lengths = [len(sample.tokens) for sample in first]
    seed = trial.subject.seed + 2 * attempt
    if attempt:
        first = trial.subject.draw(lengths, seed)
    return [first, trial.subject.draw(lengths[::-1], seed + 1)] * EPOCHS


def _trained(model: Any, step: _Step, batches: Iterable[Sequence[Sample]]) -> _Trained:
    start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    optimizer = _optimizer(model)
    losses = [step(model, optimizer, samples) for samples in batches]
    return _Trained(losses, {name: tensor.detach() - start[name] for name, tensor in model.named_parameters()})


@torch.no_grad()
def _nudged(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.mul_(1 + _NUDGE * torch.randn(parameter.shape, generator=generator))
    return model


def _optimizer(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, eps=_EPSILON)


def _step(model: Any, optimizer: torch.optim.AdamW, samples: Sequence[Sample]) -> torch.Tensor:
    batch = labelled_padding(padded_right(samples))
    loss = model(**batch.inputs, labels=batch.labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    detached: torch.Tensor = loss.detach()
    return detached


def _step_alone(model: nn.Module, optimizer: torch.optim.AdamW, samples: Sequence[Sample]) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for output, share in each_alone(model, samples):
        if share > 0.0:
            (output.loss * share).backward()
            total += output.loss.detach() * share
    optimizer.step()
    optimizer.zero_grad()
    return total
