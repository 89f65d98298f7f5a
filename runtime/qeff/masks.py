"""Attention masks from positions alone: boolean, True where a key is hidden.

The builders have upstream's names and keywords (``transformers.masking_utils``), so that a derived model calls them
where its origin called upstream's. Upstream's own builders trace badly (vmap, ``.item()``) and take padding from an
attention mask; here padding is a position of -1, and a pad sees nothing.

``B`` rows, ``S`` tokens in this call, ``T`` slots that are attended to.
"""

from typing import Any

import torch
from torch import Tensor

from runtime.qeff.slots import slot_count


def mask_scores(scores: Tensor, mask: Tensor) -> Tensor:
    """Hides scores before the softmax.

    The fill is the dtype's lowest finite value: a row that is hidden as a whole (a pad) becomes uniform, not NaN.

    Args:
        scores: ``[B, H, S, T]`` of a floating dtype.
        mask: bool, broadcastable to ``scores``, True where a score is hidden.
    Returns:
        ``[B, H, S, T]`` of the dtype of ``scores``.
    Raises:
        TypeError: the mask is not boolean.
    """
    if mask.dtype is not torch.bool:
        raise TypeError(f"mask_scores: the mask must be bool, True where hidden, found {mask.dtype}")
    return scores.masked_fill(mask, torch.finfo(scores.dtype).min)


def _checked_positions(
    builder: str,
    config: Any,
    attention_mask: Tensor | None,
    past_key_values: Any,
    position_ids: Tensor | None,
    or_mask_function: Any,
    and_mask_function: Any,
) -> Tensor:
    """The position ids, once everything that these masks cannot honour is ruled out."""
    if attention_mask is not None:
        raise ValueError(
            f"{builder}: attention_mask is not supported; mark padding by position_ids == -1 and pass "
            "attention_mask=None"
        )
    if or_mask_function is not None or and_mask_function is not None:
        raise ValueError(f"{builder}: or_mask_function and and_mask_function are not supported")
    if position_ids is None:
        raise ValueError(f"{builder}: position_ids [batch, seq_len] is required; the mask is computed from it")
    if past_key_values is None:
        raise ValueError(f"{builder}: past_key_values is required; its buffer length is the mask's width")
    if position_ids.dim() != 2:
        raise ValueError(f"{builder}: position_ids must be [batch, seq_len], found {position_ids.dim()} dimensions")
    if not getattr(config, "is_causal", True):
        raise ValueError(f"{builder}: config.is_causal is False; bidirectional attention cannot use a KV cache")
    return position_ids


def _query_and_key_positions(position_ids: Tensor, target_length: Any) -> tuple[Tensor, Tensor]:
    """Positions of the queries ``[B, 1, S, 1]`` and of the keys ``[T]`` (a key's slot is its position)."""
    return position_ids[:, None, :, None], torch.arange(target_length, device=position_ids.device)


def create_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    cache_position: Tensor | None = None,
    *,
    past_key_values: Any,
    position_ids: Tensor | None = None,
    or_mask_function: Any = None,
    and_mask_function: Any = None,
    comp_ctx_lengths: Tensor | None = None,
) -> Tensor:
    """Hides the keys after the query (``transformers.masking_utils.causal_mask_function``).

    Args:
        config: the model's config.
        inputs_embeds: not used, part of upstream's signature.
        attention_mask: must be None.
        cache_position: not used, by upstream neither.
        past_key_values: the cache or its buffers, whose length is ``T``.
        position_ids: ``[B, S]`` integers, -1 for a pad.
        or_mask_function: must be None.
        and_mask_function: must be None.
        comp_ctx_lengths: None, or a tensor whose last dimension's length is ``T``.
    Returns:
        bool ``[B, 1, S, T]``, True where hidden.
    Raises:
        ValueError: an argument asks for something that positions cannot express.
    """
    positions = _checked_positions(
        "create_causal_mask",
        config,
        attention_mask,
        past_key_values,
        position_ids,
        or_mask_function,
        and_mask_function,
    )
    query, key = _query_and_key_positions(positions, slot_count(past_key_values, comp_ctx_lengths))
    mask: Tensor = key > query
    return mask


def create_sliding_window_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    cache_position: Tensor | None = None,
    *,
    past_key_values: Any,
    position_ids: Tensor | None = None,
    or_mask_function: Any = None,
    and_mask_function: Any = None,
    comp_ctx_lengths: Tensor | None = None,
) -> Tensor:
    """Hides the keys after the query and those ``config.sliding_window`` or more before it.

    Source: ``transformers.masking_utils.sliding_window_causal_mask_function``. Arguments and result are those of
    :func:`create_causal_mask`.

    Raises:
        ValueError: as :func:`create_causal_mask`, or the config has no ``sliding_window``.
    """
    positions = _checked_positions(
        "create_sliding_window_causal_mask",
        config,
        attention_mask,
        past_key_values,
        position_ids,
        or_mask_function,
        and_mask_function,
    )
    window = getattr(config, "sliding_window", None)
    if window is None:
        raise ValueError("create_sliding_window_causal_mask: config.sliding_window is not set")
    query, key = _query_and_key_positions(positions, slot_count(past_key_values, comp_ctx_lengths))
    mask: Tensor = (key > query) | (key <= query - window)
    return mask


def create_chunked_causal_mask(
    config: Any,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    cache_position: Tensor | None = None,
    *,
    past_key_values: Any,
    position_ids: Tensor | None = None,
    or_mask_function: Any = None,
    and_mask_function: Any = None,
    comp_ctx_lengths: Tensor | None = None,
) -> Tensor:
    """Hides the keys after the query and those of another chunk of ``config.attention_chunk_size`` positions.

    Source: ``transformers.masking_utils.chunked_causal_mask_function`` without left padding. Arguments and result are
    those of :func:`create_causal_mask`.

    Raises:
        ValueError: as :func:`create_causal_mask`, or the config has no ``attention_chunk_size``.
    """
    positions = _checked_positions(
        "create_chunked_causal_mask",
        config,
        attention_mask,
        past_key_values,
        position_ids,
        or_mask_function,
        and_mask_function,
    )
    chunk = getattr(config, "attention_chunk_size", None)
    if chunk is None:
        raise ValueError("create_chunked_causal_mask: config.attention_chunk_size is not set")
    query, key = _query_and_key_positions(positions, slot_count(past_key_values, comp_ctx_lengths))
    # A pad's chunk does not matter (every key is after it); without negatives all integer divisions agree.
    query_chunk = torch.div(query.clamp(min=0), chunk, rounding_mode="trunc")
    return (key > query) | (torch.div(key, chunk, rounding_mode="trunc") != query_chunk)
