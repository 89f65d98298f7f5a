"""Causal masks of packed sequences, as a description instead of a tensor.

The builders have upstream's names and arguments (``transformers.masking_utils``), so that a derived model calls them
where its origin called upstream's. For anything but a :class:`~runtime.training.packing.Packing` they are upstream's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import masking_utils

from runtime.training.packing import Packing


@dataclass(frozen=True, eq=False)
class SegmentMask:
    """Which keys a query of a packed row attends to: those of its own segment, up to itself, perhaps not too far back.

    Compared by identity, and a leaf for ``torch.utils._pytree``, as a packing is. Get it from ``packing.mask(...)``,
    so that layers with the same mask share what it caches.

    Attributes:
        packing: where the segments are.
        window: how many keys a query attends to at most, itself included; None for no limit. Upstream builds masks of
            window 0 for layers that a config does not have: such a mask can be made, and no attention takes it.
        chunk: segments are cut into pieces of this length, counted from each segment's start, and a query attends
            inside its piece; None for whole segments.
    """

    packing: Packing
    window: int | None = None
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, size in (("window", self.window), ("chunk", self.chunk)):
            if size is not None and size < 0:
                raise ValueError(f"SegmentMask: {name} is negative: {size}")

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each stretch that attention may not cross: a segment, or a chunk of one."""
        if self.chunk is None:
            return self.packing.lengths
        return tuple(part for length in self.packing.lengths for part in _pieces(length, self.chunk))

    @cached_property
    def max_seqlen(self) -> int:
        """Tokens of the longest stretch."""
        return max(self.lengths)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """int32 ``[stretches + 1]`` on the device, where each stretch starts, then ``T``."""
        if self.lengths == self.packing.lengths:
            return self.packing.cu_seqlens
        edges = torch.tensor((0, *self.lengths)).cumsum(0)
        return edges.to(device=self.packing.cu_seqlens.device, dtype=torch.int32)

    @cached_property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """``(length, count)`` of neighbouring stretches of one length: they can be computed as one batch."""
        runs: list[tuple[int, int]] = []
        for length in self.lengths:
            if runs and runs[-1][0] == length:
                runs[-1] = (length, runs[-1][1] + 1)
            else:
                runs.append((length, 1))
        return tuple(runs)

    @cached_property
    def _bands(self) -> dict[tuple[int, int, torch.device], Tensor]:
        return {}

    def band(self, queries: int, behind: int, device: torch.device) -> Tensor:
        """The mask inside a stretch: bool ``[queries, behind + queries]``, True where a query attends.

        The mask depends on distances alone, so a stretch needs no mask of its own: this is a view of one tensor for
        all stretches.

        Args:
            queries: how many consecutive queries.
            behind: how many keys lie before the first of these queries.
            device: where the mask is needed.
        """
        # Rows are added by powers of two, so that stretches of many lengths make few tensors.
        rows = 1 << (queries - 1).bit_length()
        key = (rows, behind, device)
        if key not in self._bands:
            query = torch.arange(behind, behind + rows, device=device)[:, None]
            distance = query - torch.arange(behind + rows, device=device)
            seen = distance >= 0
            if self.window is not None:
                seen &= distance < self.window
            self._bands[key] = seen
        return self._bands[key][:queries, : behind + queries]

    def __repr__(self) -> str:
        limits = [
            f"{name} {size}" for name, size in (("window", self.window), ("chunk", self.chunk)) if size is not None
        ]
        return f"SegmentMask({', '.join([repr(self.packing), *limits])})"


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
    """Hides the keys after the query and those of other segments.

    Args:
        config: the model's config.
        inputs_embeds: ``[1, T, H]``; not read for a packing.
        attention_mask: a packing; anything else goes to upstream's builder with all other arguments.
        cache_position: not used, by upstream neither.
        past_key_values: not read for a packing, which allows no cache.
        position_ids: not read for a packing: segments are known, positions need not be.
        or_mask_function: must be None for a packing.
        and_mask_function: must be None for a packing.
        kwargs: other keywords of upstream's builder, and ``input_embeds`` for ``inputs_embeds``.
    Returns:
        a :class:`SegmentMask`, or what upstream's builder returns.
    Raises:
        NotImplementedError: a packing together with mask functions or with a model that is not causal.
    """
    builder = "create_causal_mask"
    if isinstance(attention_mask, Packing):
        refuse_unpackable(builder, config, or_mask_function, and_mask_function)
        return attention_mask.mask()
    return masking_utils.create_causal_mask(
        config,
        embeddings(inputs_embeds, kwargs),
        attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        or_mask_function=or_mask_function,
        and_mask_function=and_mask_function,
        **_given(cache_position, kwargs),
    )


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
    """As :func:`create_causal_mask`, and hides the keys ``config.sliding_window`` or more before the query.

    Raises:
        NotImplementedError: as :func:`create_causal_mask`.
        ValueError: the config has no ``sliding_window``.
    """
    builder = "create_sliding_window_causal_mask"
    if isinstance(attention_mask, Packing):
        refuse_unpackable(builder, config, or_mask_function, and_mask_function)
        return attention_mask.mask(window=config_size(builder, config, "sliding_window"))
    return masking_utils.create_sliding_window_causal_mask(
        config,
        embeddings(inputs_embeds, kwargs),
        attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        or_mask_function=or_mask_function,
        and_mask_function=and_mask_function,
        **_given(cache_position, kwargs),
    )


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
    """As :func:`create_causal_mask`, and hides the keys of other chunks of ``config.attention_chunk_size`` tokens.

    Chunks are counted from each segment's first token, as upstream counts them from a row's first real token.

    Raises:
        NotImplementedError: as :func:`create_causal_mask`.
        ValueError: the config has no ``attention_chunk_size``.
    """
    builder = "create_chunked_causal_mask"
    if isinstance(attention_mask, Packing):
        refuse_unpackable(builder, config, or_mask_function, and_mask_function)
        return attention_mask.mask(chunk=config_size(builder, config, "attention_chunk_size"))
    return masking_utils.create_chunked_causal_mask(
        config,
        embeddings(inputs_embeds, kwargs),
        attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        or_mask_function=or_mask_function,
        and_mask_function=and_mask_function,
        **_given(cache_position, kwargs),
    )


def packed_mask_or(attention_mask: Any, inputs_embeds: Tensor, build: Callable[[], Any]) -> Any:
    """The causal mask of a packing, or what a model's own code builds for anything else.

    Args:
        attention_mask: a packing; anything else is left to ``build``.
        inputs_embeds: ``[1, T, H]``; not read here.
        build: upstream's code.
    Returns:
        a :class:`SegmentMask`, or what ``build`` returns.
    """
    return attention_mask.mask() if isinstance(attention_mask, Packing) else build()


def refuse_unpackable(builder: str, config: Any, or_mask_function: Any, and_mask_function: Any) -> None:
    """Raises NotImplementedError for what a mask of packed causal segments cannot express."""
    for name, function in (("or_mask_function", or_mask_function), ("and_mask_function", and_mask_function)):
        if function is not None:
            raise NotImplementedError(f"{builder}: {name} cannot be combined with packed input")
    if not getattr(config, "is_causal", True):
        raise NotImplementedError(f"{builder}: config.is_causal is False; packed attention is causal")


def config_size(builder: str, config: Any, name: str) -> int:
    """The window or chunk size of a config.

    Raises:
        ValueError: it is not set.
    """
    size = getattr(config, name, None)
    if size is None:
        raise ValueError(f"{builder}: Could not find a `{name}` argument in the config, or it is not set")
    return int(size)


def embeddings(inputs_embeds: Tensor | None, kwargs: dict[str, Any]) -> Tensor | None:
    """``inputs_embeds``, taken out of ``kwargs`` where a caller spells it ``input_embeds``; releases differ in it."""
    earlier = kwargs.pop("input_embeds", None)
    return earlier if inputs_embeds is None else inputs_embeds


def _given(cache_position: Tensor | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Upstream's other keywords, without the deprecated ones that were not passed."""
    given = dict(kwargs)
    if cache_position is not None:
        given["cache_position"] = cache_position
    return given


def _pieces(length: int, chunk: int) -> list[int]:
    whole, rest = divmod(length, chunk)
    return [chunk] * whole + [rest] * (rest > 0)
