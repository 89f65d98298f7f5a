"""Targets and losses of packed rows against upstream's loss of every sequence alone."""

from typing import Any

import pytest
import torch
from packed_reference import Patched, counted_transfers, drawn
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from runtime.training.loss import IGNORE_INDEX, aligned, cross_entropy_for, shifted, without_first
from runtime.training.packing import Packing, pack

VOCABULARY = 11
MASKS = {
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "both": [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]],
    "segments": [[1, 1, 2, 2, 2], [1, 2, 3, 0, 0], [4, 4, 4, 4, 0]],
    "none": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
}


def packing_of(mask: list[list[int]]) -> Packing:
    given = torch.tensor(mask)
    *_, packing = pack(Patched(), torch.zeros_like(given), None, None, given, {})
    assert isinstance(packing, Packing)
    return packing


def labels_for(mask: list[list[int]]) -> Tensor:
    """Labels with holes of -100 in them; those of the padding are none either."""
    shape = torch.tensor(mask).shape
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(VOCABULARY, shape, generator=generator)
    labels[torch.rand(shape, generator=generator) < 0.2] = IGNORE_INDEX
    return labels.masked_fill(torch.tensor(mask) == 0, IGNORE_INDEX)


def sequences(row: Tensor, packing: Packing) -> list[Tensor]:
    """The segments of a packed `[1, T, ...]`, each as a batch of one."""
    return list(row.split(list(packing.lengths), dim=1))


def summed_alone(logits: Tensor, labels: Tensor, packing: Packing) -> tuple[Tensor, int]:
    """Upstream's sums over the sequences and how many targets they have."""
    total, count = logits.new_zeros((), dtype=torch.float32), 0
    for part, own in zip(sequences(logits, packing), sequences(packing.gather(labels), packing), strict=True):
        total = total + ForCausalLMLoss(part, own, VOCABULARY, num_items_in_batch=torch.tensor(1))
        count += int((own[:, 1:] != IGNORE_INDEX).sum())
    return total, count


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_a_target_is_the_next_label_of_the_segment(mask: list[list[int]]) -> None:
    packing, labels = packing_of(mask), labels_for(mask)
    targets = shifted(labels, packing)
    assert targets is not None and targets.dtype == torch.int64 and targets.shape == (1, packing.total)
    for own, found in zip(sequences(packing.gather(labels), packing), sequences(targets, packing), strict=True):
        assert found[0].tolist() == [*own[0, 1:].tolist(), IGNORE_INDEX]


@pytest.mark.parametrize("items", [None, 7, torch.tensor(7)], ids=["mean", "int", "tensor"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_the_loss_is_that_of_the_sequences_alone(mask: list[list[int]], items: Any) -> None:
    packing, labels = packing_of(mask), labels_for(mask)
    logits = drawn(1, packing.total, VOCABULARY, dtype=torch.float32).requires_grad_()
    kwargs: dict[str, Any] = {} if items is None else {"num_items_in_batch": items}
    module = Patched()
    module.loss_function = ForCausalLMLoss
    targets = shifted(labels, packing, kwargs)
    found = cross_entropy_for(module)(
        logits=logits, labels=labels, vocab_size=VOCABULARY, shift_labels=targets, **kwargs
    )
    total, count = summed_alone(logits, labels, packing)
    expected = total / (count if items is None else 7)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_sequences_of_one_token_have_no_target() -> None:
    packing = Packing.of_lengths([1, 1, 3, 1])
    targets = shifted(torch.tensor([[1, 2, 3, 4, 5, 6]]), packing)
    assert targets is not None and targets.tolist() == [[-100, -100, 4, 5, -100, -100]]


def test_labels_may_be_packed_already() -> None:
    mask = MASKS["both"]
    packing, labels = packing_of(mask), labels_for(mask)
    packed = packing.gather(labels)
    assert torch.equal(shifted(packed, packing), shifted(labels, packing))  # type: ignore[arg-type]
    assert torch.equal(aligned(packed, packing), packed) and torch.equal(aligned(labels, packing), packed)
    assert aligned(labels, None) is labels


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_a_loss_that_shifts_itself_finds_no_target_in_another_segment(mask: list[list[int]]) -> None:
    packing, labels = packing_of(mask), labels_for(mask)
    targets = shifted(labels, packing)
    assert targets is not None
    assert torch.equal(without_first(labels, packing)[..., 1:], targets[..., :-1])
    assert without_first(labels, None) is labels


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_shifted_labels_of_the_caller_are_not_shifted_again(layout: str) -> None:
    mask = MASKS["both"]
    packing, labels = packing_of(mask), labels_for(mask)
    given = labels.roll(-1, 1)
    kwargs: dict[str, Any] = {"shift_labels": given if layout == "padded" else packing.gather(given)}
    targets = shifted(labels, packing, kwargs)
    assert targets is not None and torch.equal(targets, packing.gather(given)) and kwargs == {}


def test_without_a_packing_the_shift_is_upstreams() -> None:
    labels = torch.ones(2, 3, dtype=torch.int64)
    assert shifted(labels, None, {}) is None and shifted(labels, torch.ones(2, 3)) is None
    kwargs: dict[str, Any] = {"shift_labels": labels, "num_items_in_batch": 2}
    assert shifted(labels, None, kwargs) is labels and kwargs == {"num_items_in_batch": 2}
    assert shifted(None, Packing.of_lengths([2]), {}) is None


def test_another_ignore_index() -> None:
    packing = Packing.of_lengths([2, 1])
    kwargs: dict[str, Any] = {"ignore_index": -1}
    targets = shifted(torch.tensor([[4, 5, 6]]), packing, kwargs)
    assert targets is not None and targets.tolist() == [[5, -1, -1]] and kwargs == {"ignore_index": -1}


@pytest.mark.parametrize("shape", [(3, 4), (1, 9), (15,), (3, 5, 1)])
def test_labels_of_another_shape_are_an_error(shape: tuple[int, ...]) -> None:
    packing = packing_of(MASKS["segments"])
    for name, kwargs in (("labels", {}), ("shift_labels", {"shift_labels": torch.zeros(shape, dtype=torch.int64)})):
        with pytest.raises(ValueError, match=rf"{name} must be \[3, 5\] as the input or \[1, 12\] packed"):
            shifted(torch.zeros(shape, dtype=torch.int64), packing, kwargs)


def test_labels_are_not_changed() -> None:
    packing = Packing.of_lengths([2, 3])
    labels = torch.arange(5)[None]
    shifted(labels, packing)
    assert labels.tolist() == [[0, 1, 2, 3, 4]]


def test_the_models_loss_function_stays_without_the_kernel() -> None:
    module = nn.Module()
    module.loss_function = lambda value, **kwargs: (value, kwargs)
    assert cross_entropy_for(module)(3, a=4) == (3, {"a": 4})  # type: ignore[arg-type]


def test_targets_wait_for_no_device() -> None:
    packing, labels = packing_of(MASKS["both"]), labels_for(MASKS["both"])
    with counted_transfers() as made:
        shifted(labels, packing)
    assert made == []
