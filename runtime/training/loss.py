"""Targets and loss of packed sequences."""

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import ForCausalLMLoss

from runtime.training.features import active
from runtime.training.packing import Packing
from runtime.training.ulysses import SequenceParallel

IGNORE_INDEX = -100


def shifted(labels: Tensor | None, packing: Any, kwargs: MutableMapping[str, Any] | None = None) -> Tensor | None:
    """The target of every packed token: the next label of its own segment, nothing for a segment's last token.

    The target of token t is label t + 1, so that targets line up with logits as ``shift_labels`` of
    ``transformers.loss.loss_utils.ForCausalLMLoss`` does. Labels are shifted before the row is shared among ranks: no
    target is lost between two of them.

    Where padding stands before a sequence, upstream counts the sequence's first label, predicted from a pad, unless it
    is -100. Here, as for a sequence alone, it is no target.

    Args:
        labels: int64 ``[B, S]`` as the model was called, or ``[1, T]`` packed; -100 is no target.
        packing: the packing; anything else leaves the shift to upstream.
        kwargs: the forward's other keywords. ``shift_labels`` is taken out of it: targets that are shifted already,
            of either shape. ``ignore_index`` is read. Where ranks share the row, they are put in as ``ranks``, for
            :func:`cross_entropy_for`.
    Returns:
        int64 ``[1, T]`` (a rank's share of it), or without a packing the caller's ``shift_labels``, mostly None.
    Raises:
        ValueError: labels that are neither of the batch's shape nor packed.
    """
    given: Tensor | None = None if kwargs is None else kwargs.pop("shift_labels", None)
    if not isinstance(packing, Packing):
        return given
    ignore_index: int = IGNORE_INDEX if kwargs is None else kwargs.get("ignore_index", IGNORE_INDEX)
    if given is not None:
        targets = _packed(given, packing, "shift_labels")
    elif labels is not None:
        targets = _next_of_segment(_packed(labels, packing, "labels"), packing, ignore_index)
    else:
        return None
    if packing.group is not None:
        if kwargs is None:
            raise NotImplementedError("this model's loss takes no keywords, it cannot be summed over ranks")
        targets = packing.group.cut(targets, fill=ignore_index)
        kwargs["ranks"] = packing.group
    return targets


def aligned(labels: Tensor, packing: Any) -> Tensor:
    """The labels of the packed tokens as they are, for a loss over a token's own label.

    Args:
        labels: int64 ``[B, S]`` as the input, or ``[1, T]`` packed.
        packing: the packing; without one the labels are returned as they came.
    Returns:
        ``[1, T]``.
    Raises:
        ValueError: labels of another shape.
        NotImplementedError: ranks share the row: such a loss is computed by the model itself, of one rank's tokens.
    """
    if not isinstance(packing, Packing):
        return labels
    if packing.group is not None:
        raise NotImplementedError(
            "sequence parallelism: this model computes its loss itself, each rank would have its own"
        )
    return _packed(labels, packing, "labels")


def without_first(labels: Tensor, packing: Any) -> Tensor:
    """The labels of the packed tokens, each sequence's first one ignored: for a loss that takes ``labels[..., 1:]``.

    Args:
        labels: int64 ``[B, S]`` as the input, or ``[1, T]`` packed.
        packing: the packing; without one the labels are returned as they came.
    Returns:
        ``[1, T]``.
    Raises:
        NotImplementedError: the row is shared among ranks: a rank's last target is another rank's label.
        ValueError: labels of another shape.
    """
    if not isinstance(packing, Packing):
        return labels
    if packing.group is not None:
        raise NotImplementedError("a loss that shifts labels itself cannot share a row among ranks")
    return _packed(labels, packing, "labels").index_fill(1, packing.cu_seqlens[:-1].long(), IGNORE_INDEX)


def cross_entropy_for(module: nn.Module) -> Callable[..., Tensor]:
    """The loss function of a model: its own, or Liger's with the same arguments where ``cross_entropy`` is active.

    Liger's stands for upstream's ``ForCausalLMLoss`` alone: a model with another loss function keeps it.
    Where ranks share a row (``ranks``, see :func:`shifted`), it is the loss of the whole row, the same on every rank.
    """
    function: Any = module.loss_function
    if active(module, "cross_entropy") and function is ForCausalLMLoss:
        from runtime.training.kernels.loss import liger_cross_entropy

        function = liger_cross_entropy
    return partial(_of_all_ranks, module, cast(Callable[..., Tensor], function))


def _of_all_ranks(
    module: nn.Module,
    function: Callable[..., Tensor],
    *args: Any,
    ranks: SequenceParallel | None = None,
    **kwargs: Any,
) -> Tensor:
    """Adds up what the ranks' targets contribute to the mean, or to the sum over ``num_items_in_batch``."""
    if ranks is None:
        return function(*args, **kwargs)
    if module.loss_function is not ForCausalLMLoss:
        raise NotImplementedError(
            f"sequence parallelism with the loss function {module.loss_function!r}: only a mean over targets is known "
            "to be the sum of what the ranks contribute"
        )
    if kwargs.get("num_items_in_batch") is None:
        targets: Tensor = kwargs["shift_labels"]
        counted = targets != kwargs.get("ignore_index", IGNORE_INDEX)
        kwargs["num_items_in_batch"] = ranks.total(counted.sum())
    return ranks.total(function(*args, **kwargs))


def _packed(labels: Tensor, packing: Packing, name: str) -> Tensor:
    labels = labels.to(packing.cu_seqlens.device)
    if tuple(labels.shape) == packing.shape:
        return packing.gather(labels)
    if tuple(labels.shape) == (1, packing.total):
        return labels
    rows, columns = packing.shape
    raise ValueError(
        f"rmpad: {name} must be [{rows}, {columns}] as the input or [1, {packing.total}] packed, "
        f"found {list(labels.shape)}"
    )


def _next_of_segment(labels: Tensor, packing: Packing, ignore_index: int) -> Tensor:
    following = torch.roll(labels, -1, dims=1)
    last = packing.cu_seqlens[1:].long() - 1
    return following.index_fill(1, last, ignore_index)
