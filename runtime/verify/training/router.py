"""The auxiliary loss of routers, which is of a whole batch: compared with upstream on the same padded batch."""

from collections.abc import Iterator
from typing import Any

import torch

from runtime.verify.training.compare import loss_error
from runtime.verify.training.sequences import Batch, padded_right, unpadded
from runtime.verify.training.subject import Reference, Subject, gradients
from runtime.verify.training.trial import Measured, NothingToCompareError, Trial, gradient

_EQUAL = (11, 11, 11)
_COLUMNS = 6
_SAME = 1e-5


def has_router_loss(subject: Subject) -> bool:
    """Whether the configuration knows an auxiliary loss of routers."""
    config: Any = subject.original.config
    return any(hasattr(part, "output_router_logits") for part in (config, config.get_text_config(decoder=True)))


def router_loss_unpadded(trial: Trial) -> Iterator[Measured]:
    """The auxiliary loss, the whole loss and all gradients for rows of one length."""
    yield from _compare(trial, unpadded(trial.subject.draw(_EQUAL, trial.subject.seed)))


def router_loss(trial: Trial) -> Iterator[Measured]:
    """The same for padded rows, where upstream leaves padding out of the loss: where more padding changes nothing."""
    samples = trial.subject.samples
    few, many = (_upstream(trial.subject, padded_right(samples, extra)) for extra in (0, _COLUMNS))
    if abs(few[1] - many[1]) > _SAME * abs(few[1]):
        raise NothingToCompareError(f"upstream's auxiliary loss depends on padding: {few[1]:.6f}, {many[1]:.6f}")
    yield from _compare(trial, padded_right(samples))


def _compare(trial: Trial, batch: Batch) -> Iterator[Measured]:
    expected, auxiliary = _upstream(trial.subject, batch)
    model = trial.variant()
    output = _run(model, batch)
    if getattr(output, "aux_loss", None) is None:
        raise ValueError("the variant gives no auxiliary loss")
    yield Measured("router", loss_error(torch.as_tensor(output.aux_loss).detach(), auxiliary))
    yield Measured("loss", loss_error(output.loss.detach(), expected.loss))
    output.loss.backward()
    yield gradient(model, expected)


def _upstream(subject: Subject, batch: Batch) -> tuple[Reference, float]:
    """Loss and gradients of upstream with the auxiliary loss, and that loss. Raises NothingToCompareError."""
    model = subject.upstream()
    try:
        output = _run(model, batch, use_cache=False)
    except Exception as failure:
        raise NothingToCompareError(f"upstream: {type(failure).__name__}: {failure}") from failure
    auxiliary = getattr(output, "aux_loss", None)
    if not isinstance(auxiliary, torch.Tensor):
        raise NothingToCompareError("upstream gives no auxiliary loss")
    output.loss.backward()
    return Reference((), float(output.loss.detach()), gradients(model)), float(auxiliary.detach())


def _run(model: Any, batch: Batch, **keywords: Any) -> Any:
    return model(**batch.inputs, labels=batch.labels, output_router_logits=True, **keywords)
