"""What a packed model gives without its head: hidden states, where each sequence lies in them, and no cache."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from runtime.verify.training.sequences import Batch, padded_left
from runtime.verify.training.trial import Measured, Trial


@torch.no_grad()
def hidden_states(trial: Trial) -> Iterator[Measured]:
    """Ends and places of the sequences in the output of everything below the head that is called with tokens.

    A cache of the whole row would hold every sequence as if it were one: there is none, even though configurations
    ask for one.
    """
    model, batch = trial.variant(), padded_left(trial.subject.samples)
    outputs: dict[str, Any] = {}

    def keep(module: nn.Module, arguments: object, output: Any) -> None:
        if hasattr(output, "last_hidden_state"):
            outputs[type(module).__name__] = output

    for module in model.modules():
        if module is not model and "input_ids" in inspect.signature(module.forward).parameters:
            module.register_forward_hook(keep)
    model(**batch.inputs)
    if not outputs:
        raise AssertionError("nothing below the head gives hidden states")
    for name, output in outputs.items():
        yield Measured("places", _difference(output, batch), 0.0, name)
        if getattr(output, "past_key_values", None) is not None:
            raise AssertionError(f"{name} kept a cache of a packed row")


def _difference(output: Any, batch: Batch) -> float:
    """How many numbers are others than those of the batch. Raises AssertionError for other hidden states than one row
    [1, T, H], and for numbers that are missing or of another kind."""
    assert batch.mask is not None
    lengths = torch.tensor([0, *(len(sample.tokens) for sample in batch.samples)])
    expected = {"seq_lens": lengths.cumsum(0).to(torch.int32), "word_idx": batch.mask.flatten().nonzero()[:, 0]}
    if output.last_hidden_state.shape[:2] != (1, batch.tokens):
        raise AssertionError(f"hidden states are {list(output.last_hidden_state.shape)}, not [1, {batch.tokens}, H]")
    wrong = 0
    for field, theirs in expected.items():
        mine = getattr(output, field, None)
        if mine is None or mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise AssertionError(f"{field} is {mine}, not {theirs.dtype} {list(theirs.shape)}")
        wrong += int((mine != theirs).sum())
    return float(wrong)
