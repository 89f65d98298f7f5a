"""Padding removed once, before the first layer: all sequences of a batch in one row, ``[1, T]``.

A :class:`Packing` says where the sequences are. It travels from the head to the attention as the value of
``attention_mask``, so that upstream's own layers hand it on without knowing it. Everything that costs a transfer from
the device is paid here, once per step; nothing after it asks the device a question.

``B`` rows, ``S`` tokens in a row as the caller gave them, ``T`` tokens once packed, ``n`` segments (sequences).
"""

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from runtime.training import ulysses
from runtime.training.features import active
from runtime.training.frequencies import check_frequencies
from runtime.training.segments import segments_of, shape_text

if TYPE_CHECKING:
    from runtime.training.masks import SegmentMask

LogitsLayout = Literal["packed", "padded"]

LOGITS_LAYOUTS: tuple[LogitsLayout, ...] = ("packed", "padded")


@dataclass(frozen=True, eq=False)
class Packing:
    """Where the sequences of a packed row are.

    Compared by identity, and a leaf for ``torch.utils._pytree``: wrappers that map over a forward's arguments hand it
    on as it is.

    Attributes:
        cu_seqlens: int32 ``[n + 1]`` on the device, where each segment starts, then ``T``.
        lengths: tokens of each segment, all at least 1, as Python integers.
        indices: int64 ``[T]``, places of the packed tokens in the caller's flattened ``[B * S]``; None when every
            token was kept, in order.
        shape: the caller's ``(B, S)``.
        position_ids: int64 ``[1, T]``, or ``[k, 1, T]`` for rotations of several axes.
        logits_layout: the caller's wish for the logits; None leaves it to training or evaluation mode.
        group: the ranks that share this row, None for one process.
    """

    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    indices: Tensor | None
    shape: tuple[int, int]
    position_ids: Tensor
    logits_layout: LogitsLayout | None = None
    group: ulysses.SequenceParallel | None = None

    @classmethod
    def of_lengths(cls, lengths: Sequence[int], device: torch.device | str | None = None) -> "Packing":
        """The packing of a row that holds segments of these lengths and nothing else.

        Args:
            lengths: tokens of each segment; empty segments are dropped.
            device: where its tensors are to be.
        Raises:
            ValueError: no token at all, or a negative length.
        """
        if any(length < 0 for length in lengths):
            raise ValueError(f"Packing.of_lengths: a segment's length is negative: {tuple(lengths)}")
        total = sum(lengths)
        starts = _running_sum(lengths)[:-1]
        segments = [(start, length) for start, length in zip(starts, lengths, strict=True) if length]
        return _packing_of_segments(segments, (1, total), torch.device(device or "cpu"), None)

    @cached_property
    def total(self) -> int:
        """``T``, the tokens of the packed row."""
        return sum(self.lengths)

    @cached_property
    def max_seqlen(self) -> int:
        """Tokens of the longest segment."""
        return max(self.lengths)

    @cached_property
    def segment_ids(self) -> Tensor:
        """int64 ``[T]``: the segment of each token, counted from 0."""
        counts = self.cu_seqlens.diff().long()
        names = torch.arange(len(self.lengths), device=self.cu_seqlens.device)
        return torch.repeat_interleave(names, counts, output_size=self.total)

    @cached_property
    def offsets(self) -> Tensor:
        """int64 ``[T]``: the place of each token in its segment, counted from 0."""
        places = torch.arange(self.total, device=self.cu_seqlens.device)
        return places - self.cu_seqlens[:-1].long()[self.segment_ids]

    @property
    def word_idx(self) -> Tensor:
        """int64 ``[T]``: places of the packed tokens in the caller's flattened ``[B * S]``."""
        if self.indices is None:
            return torch.arange(self.total, device=self.cu_seqlens.device)
        return self.indices

    @cached_property
    def _masks(self) -> dict[tuple[int | None, int | None], "SegmentMask"]:
        return {}

    def mask(self, window: int | None = None, chunk: int | None = None) -> "SegmentMask":
        """The causal mask inside segments, the same object for the same arguments: layers share what it caches."""
        from runtime.training.masks import SegmentMask

        key = (window, chunk)
        if key not in self._masks:
            self._masks[key] = SegmentMask(self, window, chunk)
        return self._masks[key]

    def gather(self, padded: Tensor) -> Tensor:
        """Drops the padding: ``[B, S, ...]`` to ``[1, T, ...]``, differentiable.

        Raises:
            ValueError: the tensor is not of the batch's shape.
        """
        if tuple(padded.shape[:2]) != self.shape:
            raise ValueError(
                f"packing: expected a tensor of [{shape_text(self.shape)}, ...], found {list(padded.shape)}"
            )
        flat = padded.reshape(-1, *padded.shape[2:])
        if self.indices is not None:
            flat = flat.index_select(0, self.indices)
        return flat.unsqueeze(0)

    def scatter(self, packed: Tensor) -> Tensor:
        """Puts the padding back, as zeros: ``[1, T, ...]`` to ``[B, S, ...]``, differentiable.

        Raises:
            ValueError: the tensor does not hold one entry per packed token.
        """
        if tuple(packed.shape[:2]) != (1, self.total):
            raise ValueError(f"packing: expected a tensor of [1, {self.total}, ...], found {list(packed.shape)}")
        flat = packed.squeeze(0)
        if self.indices is not None:
            rows, columns = self.shape
            flat = flat.new_zeros(rows * columns, *flat.shape[1:]).index_copy(0, self.indices, flat)
        return flat.reshape(*self.shape, *packed.shape[2:])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Packing":
        """This packing with its tensors on another device."""
        return Packing(
            cu_seqlens=self.cu_seqlens.to(device, non_blocking=non_blocking),
            lengths=self.lengths,
            indices=None if self.indices is None else self.indices.to(device, non_blocking=non_blocking),
            shape=self.shape,
            position_ids=self.position_ids.to(device, non_blocking=non_blocking),
            logits_layout=self.logits_layout,
            group=self.group,
        )

    def __repr__(self) -> str:
        return f"Packing({len(self.lengths)} segments, {self.total} tokens of [{shape_text(self.shape)}])"


def pack(
    module: nn.Module,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    position_ids: Tensor | None,
    attention_mask: Any,
    kwargs: MutableMapping[str, Any],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Any]:
    """Removes the padding of a batch, or reads how it was packed.

    Where the segments come from, in this order:

    * ``cu_seqlens`` (``cu_seq_lens``, ``cu_seq_lens_q`` and ``cu_seq_lens_k``) of a row ``[1, T]``;
    * ``seq_idx`` ``[B, S]``, a change starts a segment;
    * ``attention_mask`` ``[B, S]``: 0 is padding, left, right or between segments; equal values form a segment, so that
      1, 1, 2, 2, 2, 0 are two;
    * ``position_ids`` ``[B, S]`` or ``[1, S]`` when nothing is padded: a position that is not its predecessor's plus
      one starts a segment, as in ``transformers.masking_utils.find_packed_sequence_indices``;
    * else every row is a segment.

    Rows without a token are dropped. An all-ones mask is no mask. Keywords that are read are taken out of ``kwargs``.

    Args:
        module: the model; nothing happens unless its feature ``rmpad`` is active.
        input_ids: int64 ``[B, S]`` or None.
        inputs_embeds: ``[B, S, H]`` or None.
        position_ids: ``[B, S]``, ``[1, S]``, ``[k, B, S]``, ``[k, 1, S]`` or None: then counted from 0 per segment.
        attention_mask: as above, or a :class:`Packing`: then the input is packed already.
        kwargs: the forward's other keywords.
    Returns:
        input_ids ``[1, T]`` or None, inputs_embeds ``[1, T, H]`` or None, position_ids ``[1, T]`` or ``[k, 1, T]``, and
        the packing; or everything as it came.
    Raises:
        ValueError: inputs that contradict each other or cannot be packed, among them masks of four dimensions, holes
            in a sequence, a batch without a token, and a wish for attention weights.
        NotImplementedError: rotary frequencies that a sequence would choose for others, see `frequencies`.
    """
    if not active(module, "rmpad"):
        return input_ids, inputs_embeds, position_ids, attention_mask
    if isinstance(attention_mask, Packing):
        return input_ids, inputs_embeds, _or_own_positions(position_ids, attention_mask), attention_mask
    if position_ids is None:
        # models without positions of their own are given them all the same
        position_ids = kwargs.pop("position_ids", None)
    _refuse_attention_weights(module, kwargs)

    shape, device = _batch_of(input_ids, inputs_embeds)
    layout = _taken_layout(kwargs)
    segments = segments_of(shape, position_ids, attention_mask, kwargs)
    if not segments:
        raise ValueError("rmpad: the batch has no token: every row of attention_mask is 0, or the input is empty")

    packing = _packing_of_segments(segments, shape, device, position_ids, layout)
    if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
        check_frequencies(config, packing.lengths)
    if input_ids is not None:
        input_ids = packing.gather(input_ids)
    if inputs_embeds is not None:
        inputs_embeds = packing.gather(inputs_embeds)
    return _shared_among_ranks(module, input_ids, inputs_embeds, packing)


def no_cache(attention_mask: Any, past_key_values: Any, use_cache: bool | None) -> bool | None:
    """Whether a forward may keep a cache: never with packed input, else as it was asked to.

    Raises:
        ValueError: packed input together with a cache that holds something.
    """
    if not isinstance(attention_mask, Packing):
        return use_cache
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError(
            "rmpad: a filled past_key_values cannot go with packed input; "
            "generate with the patch lifted, see MONKEY_PATCHER.generation(model)"
        )
    return False


def own_positions(packing: Any, counted: Tensor | None) -> Tensor | None:
    """Positions of a row's tokens, for a model that counts them itself.

    Args:
        packing: the packing, or a mask of one; without one the count is returned as it came.
        counted: int64 ``[S]``, counted from the row's start, or None where a part of the model would count them.
    Returns:
        int64 ``[T]``, of this rank's tokens where the row is shared: as the caller gave them, or counted from the start
        of each segment.
    Raises:
        ValueError: positions of several axes.
    """
    packing = getattr(packing, "packing", packing)
    if not isinstance(packing, Packing):
        return counted
    if packing.position_ids.dim() != 2:
        raise ValueError(f"rmpad: one position per token is needed, found {list(packing.position_ids.shape)}")
    return _or_own_positions(None, packing)[0]


def _shared_among_ranks(
    module: nn.Module, input_ids: Tensor | None, inputs_embeds: Tensor | None, packing: Packing
) -> tuple[Tensor | None, Tensor | None, Tensor, Packing]:
    """The part of the row that belongs to this rank; all of it without sequence parallelism."""
    ranks = ulysses.current()
    if ranks is None:
        return input_ids, inputs_embeds, packing.position_ids, packing
    config = getattr(module, "config", None)
    if config is not None:
        ranks.check_config(config)
    ranks.check_same(input_ids=input_ids, lengths=packing.lengths, position_ids=packing.position_ids)
    if config is not None:
        ranks.check_positions(config, packing.position_ids)
    input_ids, inputs_embeds = (None if row is None else ranks.cut(row) for row in (input_ids, inputs_embeds))
    packing = replace(packing, group=ranks)
    return input_ids, inputs_embeds, _or_own_positions(None, packing), packing


def _or_own_positions(position_ids: Tensor | None, packing: Packing) -> Tensor:
    if position_ids is not None:
        return position_ids
    return packing.position_ids if packing.group is None else packing.group.cut(packing.position_ids, -1, fill=0)


def _batch_of(input_ids: Tensor | None, inputs_embeds: Tensor | None) -> tuple[tuple[int, int], torch.device]:
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
    tensor = inputs_embeds if input_ids is None else input_ids
    assert tensor is not None
    if input_ids is not None and input_ids.dim() != 2:
        raise ValueError(f"rmpad: input_ids must be [batch, seq_len], found {list(input_ids.shape)}")
    if inputs_embeds is not None and inputs_embeds.dim() != 3:
        raise ValueError(f"rmpad: inputs_embeds must be [batch, seq_len, hidden], found {list(inputs_embeds.shape)}")
    return (tensor.shape[0], tensor.shape[1]), tensor.device


def _refuse_attention_weights(module: nn.Module, kwargs: Mapping[str, Any]) -> None:
    wanted = kwargs.get("output_attentions")
    if wanted is None:
        wanted = getattr(getattr(module, "config", None), "output_attentions", False)
    if wanted:
        raise ValueError(
            "rmpad: output_attentions is not supported, packed attention never forms the [T, T] weights; "
            "call the model with the patch lifted"
        )


def _taken_layout(kwargs: MutableMapping[str, Any]) -> LogitsLayout | None:
    layout: Any = kwargs.pop("logits_layout", None)
    if layout is not None and layout not in LOGITS_LAYOUTS:
        raise ValueError(f"rmpad: logits_layout must be one of {', '.join(LOGITS_LAYOUTS)}, found {layout!r}")
    chosen: LogitsLayout | None = layout
    return chosen


def _packing_of_segments(
    segments: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    device: torch.device,
    position_ids: Tensor | None,
    logits_layout: LogitsLayout | None = None,
) -> Packing:
    lengths = tuple(length for _, length in segments)
    edges = _running_sum(lengths)
    if not lengths:
        raise ValueError("rmpad: there is no token to pack")
    complete = edges[-1] == shape[0] * shape[1]

    cu_seqlens = torch.tensor(edges, dtype=torch.int32, device=device)
    total = edges[-1]
    shifts = [start - edge for (start, _), edge in zip(segments, edges, strict=False)]
    # Places and positions are each token's place in the row plus a number of its segment.
    per_segment = torch.tensor([shifts, [-edge for edge in edges[:-1]]], dtype=torch.int64, device=device)
    counts = cu_seqlens.diff().long()
    per_token = torch.repeat_interleave(per_segment, counts, dim=1, output_size=total)
    per_token = per_token + torch.arange(total, device=device)

    indices = None if complete else per_token[0]
    if position_ids is None:
        position_ids = per_token[1].unsqueeze(0)
    else:
        position_ids = _gathered_positions(position_ids.to(device), indices, shape)
    return Packing(cu_seqlens, lengths, indices, shape, position_ids, logits_layout)


def _gathered_positions(position_ids: Tensor, indices: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """``[B, S]`` or ``[1, S]`` to ``[1, T]``; ``[k, B, S]`` or ``[k, 1, S]`` to ``[k, 1, T]``."""
    axes = position_ids.shape[:-2]
    flat = position_ids.expand(*axes, *shape).reshape(*axes, -1)
    if indices is not None:
        flat = flat.index_select(-1, indices)
    return flat.unsqueeze(-2)


def _running_sum(lengths: Sequence[int]) -> list[int]:
    edges = [0]
    for length in lengths:
        edges.append(edges[-1] + length)
    return edges
