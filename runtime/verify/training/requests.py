"""What a caller may ask of a forward by keyword, as of upstream's: more outputs, a tuple, attention to both sides."""

from collections.abc import Iterator
from typing import Any

import torch

from runtime.verify.training.compare import logits_error
from runtime.verify.training.sequences import padded_left
from runtime.verify.training.subject import whole_mask
from runtime.verify.training.trial import Measured, NothingToCompareError, Trial


@torch.no_grad()
def hidden_states_of_layers(trial: Trial) -> Iterator[Measured]:
    """``output_hidden_states``: embeddings and every layer's output, of each sequence as of it alone."""
    model, batch = trial.variant(), padded_left(trial.subject.samples)
    expected = [output.hidden_states for output in _alone(trial, output_hidden_states=True)]
    if None in expected:
        raise NothingToCompareError("upstream gives no hidden states")
    found = model(**batch.inputs, output_hidden_states=True).hidden_states
    if found is None or len(found) != len(expected[0]):
        raise AssertionError(f"{0 if found is None else len(found)} hidden states, upstream's {len(expected[0])}")
    for states in zip(found, *expected, strict=True):
        for mine, *theirs in zip(*map(_streams, states), strict=True):
            yield Measured("hidden states", logits_error(batch.packed_logits(mine), [one[0] for one in theirs]))


def _streams(states: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Hidden states [..., 1, T, H] as tensors [1, T, H]: some models carry several beside each other."""
    return states.reshape(-1, *states.shape[-3:]).unbind()


@torch.no_grad()
def tuples(trial: Trial) -> Iterator[Measured]:
    """``return_dict=False``: a tuple as long as upstream's, logits first."""
    model, batch = trial.variant(), padded_left(trial.subject.samples)
    expected = _alone(trial, return_dict=False)
    if not all(isinstance(one, tuple) for one in expected):
        raise NothingToCompareError("upstream gives no tuple")
    found = model(**batch.inputs, return_dict=False, logits_layout="packed")
    if not isinstance(found, tuple) or len(found) != len(expected[0]):
        raise AssertionError(f"a {type(found).__name__} of {len(found)}, upstream's is a tuple of {len(expected[0])}")
    yield Measured("logits", logits_error(batch.packed_logits(found[0]), trial.subject.expected.logits))


@torch.no_grad()
def both_sides(trial: Trial) -> Iterator[Measured]:
    """``is_causal=False``, where upstream knows it: the same, or a refusal, but not causal logits all the same."""
    model, batch = trial.variant(), padded_left(trial.subject.samples)
    expected = [output.logits[0].float() for output in _alone(trial, is_causal=False)]
    if logits_error(expected, trial.subject.expected.logits) < 1e-3:
        raise NothingToCompareError("upstream is causal whatever it is asked for")
    try:
        found = model(**batch.inputs, is_causal=False, logits_layout="packed").logits
    except (NotImplementedError, ValueError) as refusal:
        yield Measured("refused", 0.0, note=str(refusal))
    else:
        yield Measured("logits", logits_error(batch.packed_logits(found), expected))


def _alone(trial: Trial, **keywords: Any) -> list[Any]:
    """Upstream's output for each sequence alone. Raises NothingToCompareError where upstream fails."""
    upstream = trial.subject.upstream()
    outputs = []
    for sample in trial.subject.samples:
        ids = torch.tensor([sample.tokens])
        try:
            outputs.append(upstream(input_ids=ids, use_cache=False, **whole_mask(upstream, ids), **keywords))
        except Exception as failure:
            raise NothingToCompareError(f"upstream: {type(failure).__name__}: {failure}") from failure
    return outputs
