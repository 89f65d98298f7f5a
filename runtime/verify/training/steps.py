"""Several steps: gradients accumulated over micro-batches, and real training with an optimizer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from runtime.verify.training.compare import TRAINED, loss_error, tensors_error
from runtime.verify.training.sequences import LENGTHS, Sample, labelled_padding, padded_right, random_samples
from runtime.verify.training.subject import each_alone
from runtime.verify.training.trial import Measured, NothingToCompareError, Trial, gradient

EPOCHS = 2

_FIRST = 2
_LEARNING_RATE = 1e-3
_EPSILON = 1e-5
"""With Adam's usual 1e-8 a number whose gradient is zero but for rounding moves by a full step in a direction that
rounding decides, in upstream too.
"""


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
    """
    seed = trial.subject.seed
    second = trial.subject.samples if trial.subject.by_length else random_samples(LENGTHS[::-1], seed + 1)
    batches = [trial.subject.samples, second] * EPOCHS
    upstream, variant = trial.subject.upstream(), trial.variant()
    start = {name: tensor.detach().clone() for name, tensor in upstream.named_parameters()}
    theirs, mine = _optimizer(upstream), _optimizer(variant)
    worst = 0.0
    for samples in batches:
        expected = _step_alone(upstream, theirs, samples)
        worst = max(worst, loss_error(_step(variant, mine, samples), expected))
    yield Measured("trained loss", worst)
    error, name = tensors_error(_added(variant, start), _added(upstream, start))
    yield Measured("parameters", error, TRAINED, name)


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


def _step_alone(model: nn.Module, optimizer: torch.optim.AdamW, samples: Sequence[Sample]) -> float:
    total = 0.0
    for output, share in each_alone(model, samples):
        if share > 0.0:
            (output.loss * share).backward()
            total += float(output.loss.detach()) * share
    optimizer.step()
    optimizer.zero_grad()
    return total


def _added(model: nn.Module, start: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() - start[name] for name, tensor in model.named_parameters()}
