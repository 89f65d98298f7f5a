"""Causal masks of packed sequences as an additive tensor, for attention that adds a mask to its scores itself.

Same names and arguments as :mod:`runtime.training.masks`. A ``[T, T]`` mask costs memory that packed attention does
not need, so only families whose own arithmetic cannot be replaced use these.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from runtime.training import masks
from runtime.training.masks import SegmentMask, embeddings


def additive(mask: SegmentMask, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``[1, 1, T, T]`` of `dtype`: 0 where a query attends, the lowest finite value where it does not.

    Raises:
        ValueError: a mask of window or chunk 0: rows that are hidden as a whole would see everything.
        NotImplementedError: the row is shared among ranks, none of which holds all of it.
    """
    packing = mask.packing
    if packing.group is not None:
        raise NotImplementedError("attention with its own arithmetic cannot share a row among ranks")
    if mask.window == 0 or mask.chunk == 0:
        raise ValueError(f"dense mask: {mask} lets no query attend to any key")
    segment = packing.segment_ids.to(device)
    place = packing.offsets.to(device)
    distance = place[:, None] - place
    seen = (segment[:, None] == segment) & (distance >= 0)
    if mask.window is not None:
        seen &= distance < mask.window
    if mask.chunk is not None:
        piece = torch.div(place, mask.chunk, rounding_mode="floor")
        seen &= piece[:, None] == piece
    scores = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)
    return scores[None, None]


def _dense(built: Any, inputs_embeds: Tensor | None) -> Any:
    if not isinstance(built, SegmentMask):
        return built
    if inputs_embeds is None:
        raise ValueError("a dense mask takes its dtype and device from inputs_embeds, which is None")
    return additive(built, inputs_embeds.dtype, inputs_embeds.device)


def create_causal_mask(
    config: Any,
    inputs_embeds: Tensor | None = None,
    attention_mask: Any = None,
    cache_position: Tensor | None = None,
    *,
    past_key_values: Any = None,
    position_ids: Tensor | None = None,
    or_mask_function: Callable[..., Any] | None = None,
    and_mask_function: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> Any:
    """The tensor that :func:`runtime.training.masks.create_causal_mask` describes.

    Args:
        config: as there, and so are all arguments but this:
        inputs_embeds: ``[1, T, H]``; the mask is of its dtype and on its device.
    Returns:
        ``[1, 1, T, T]`` for a packing, else what upstream's builder returns.
    """
    inputs_embeds = embeddings(inputs_embeds, kwargs)
    built = masks.create_causal_mask(
        config,
        inputs_embeds,
        attention_mask,
        cache_position,
        past_key_values=past_key_values,
        position_ids=position_ids,
        or_mask_function=or_mask_function,
        and_mask_function=and_mask_function,
        **kwargs,
    )
    return _dense(built, inputs_embeds)


def create_sliding_window_causal_mask(
    config: Any,
    inputs_embeds: Tensor | None = None,
    attention_mask: Any = None,
    cache_position: Tensor | None = None,
    *,
    past_key_values: Any = None,
    position_ids: Tensor | None = None,
    or_mask_function: Callable[..., Any] | None = None,
    and_mask_function: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> Any:
    """The tensor that :func:`runtime.training.masks.create_sliding_window_causal_mask` describes.

    Arguments and result are those of :func:`create_causal_mask`.
    """
    inputs_embeds = embeddings(inputs_embeds, kwargs)
    built = masks.create_sliding_window_causal_mask(
        config,
        inputs_embeds,
        attention_mask,
        cache_position,
        past_key_values=past_key_values,
        position_ids=position_ids,
        or_mask_function=or_mask_function,
        and_mask_function=and_mask_function,
        **kwargs,
    )
    return _dense(built, inputs_embeds)


def create_chunked_causal_mask(
    config: Any,
    inputs_embeds: Tensor | None = None,
    attention_mask: Any = None,
    cache_position: Tensor | None = None,
    *,
    past_key_values: Any = None,
    position_ids: Tensor | None = None,
    or_mask_function: Callable[..., Any] | None = None,
    and_mask_function: Callable[..., Any] | None = None,
    **kwargs: Any,
) -> Any:
    """The tensor that :func:`runtime.training.masks.create_chunked_causal_mask` describes.

    Arguments and result are those of :func:`create_causal_mask`.
    """
    inputs_embeds = embeddings(inputs_embeds, kwargs)
    built = masks.create_chunked_causal_mask(
        config,
        inputs_embeds,
        attention_mask,
        cache_position,
        past_key_values=past_key_values,
        position_ids=position_ids,
        or_mask_function=or_mask_function,
        and_mask_function=and_mask_function,
        **kwargs,
    )
    return _dense(built, inputs_embeds)


def packed_mask_or(attention_mask: Any, inputs_embeds: Tensor, build: Callable[[], Any]) -> Any:
    """The tensor that :func:`runtime.training.masks.packed_mask_or` describes, of the dtype of ``inputs_embeds``."""
    return _dense(masks.packed_mask_or(attention_mask, inputs_embeds, build), inputs_embeds)
