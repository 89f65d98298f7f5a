"""Biases over keys, by distance from the query (ALiBi, https://huggingface.co/papers/2108.12409)."""

from typing import Any

import torch
from torch import Tensor

from runtime.qeff.masks import mask_scores
from runtime.qeff.tracing import values_are_known


def last_keys(bias: Tensor, position_ids: Tensor, key_length: Any) -> Tensor:
    """Aligns a bias over keys, whose last column belongs to the last token, with the slots of a buffer.

    Source: upstream's ``bias[:, :, max(0, P - key_length):]``, where the last key is the last token. Here the last
    token of a row is its largest position, and slot ``j`` holds position ``j``. Slots after it get the last column;
    the mask hides them.

    Args:
        bias: ``[H, 1, P]``.
        position_ids: ``[B, S]`` integers, -1 for a pad.
        key_length: ``T``.
    Returns:
        ``[B, H, 1, T]`` of the bias's dtype.
    Raises:
        ValueError: the bias differs between queries (its second dimension is not 1).
        IndexError: a position is not below ``P`` (outside an export, where the runtime's own Gather refuses it).
    """
    if values_are_known() and bias.shape[1] != 1:
        raise ValueError(f"last_keys: the bias must be [heads, 1, positions], found {tuple(bias.shape)}")
    last = position_ids.amax(dim=1, keepdim=True).clamp(min=0)
    back = (last - torch.arange(key_length, device=position_ids.device)).clamp(min=0)
    return bias[:, 0].flip(-1)[:, back].transpose(0, 1).unsqueeze(2)


def add_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """Hides scores by a boolean mask, or adds one that carries a bias.

    Args:
        scores: ``[B, H, S, T]`` of a floating dtype.
        mask: broadcastable to ``scores``; bool, True where a score is hidden, or floating: a bias, the dtype's lowest
            value where a score is hidden.
    Returns:
        ``[B, H, S, T]``, finite: a row that is hidden as a whole (a pad) becomes uniform, not NaN.
    """
    if mask.dtype is torch.bool:
        return mask_scores(scores, mask)
    biased = scores + mask
    return biased.clamp(min=torch.finfo(biased.dtype).min)
