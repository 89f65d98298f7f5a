"""Padding removed once, before the first layer: all sequences of a batch in one row, ``[1, T]``.

A :class:`Packing` says where the sequences are. It travels from the head to the attention as the value of
``attention_mask``, so that upstream's own layers hand it on without knowing it. Everything that costs a transfer from
the device is paid here, once per step; nothing after it asks the device a question.

``B`` rows, ``S`` tokens in a row as the caller gave them, ``T`` tokens once packed, ``n`` segments (sequences).
"""

import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from runtime.training import ulysses
from runtime.training.features import active

if TYPE_CHECKING:
    from runtime.training.masks import SegmentMask

LogitsLayout = Literal["packed", "padded"]

CU_SEQLENS_NAMES = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k")
MAX_LENGTH_NAMES = ("max_seqlen", "max_length_q", "max_length_k")
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
            raise ValueError(f"packing: expected a tensor of [{_text(self.shape)}, ...], found {list(padded.shape)}")
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
        return f"Packing({len(self.lengths)} segments, {self.total} tokens of [{_text(self.shape)}])"


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
    """
    if not active(module, "rmpad"):
        return input_ids, inputs_embeds, position_ids, attention_mask
    if isinstance(attention_mask, Packing):
        return input_ids, inputs_embeds, _or_own_positions(position_ids, attention_mask), attention_mask
    if position_ids is None:
        position_ids = kwargs.pop(
            "position_ids", None
        )  # models without positions of their own are given them all the same
    _refuse_attention_weights(module, kwargs)

    shape, device = _batch_of(input_ids, inputs_embeds)
    layout = _taken_layout(kwargs)
    segments = _segments(shape, position_ids, _checked_mask(attention_mask, shape), kwargs)
    if not segments:
        raise ValueError("rmpad: the batch has no token: every row of attention_mask is 0, or the input is empty")

    packing = _packing_of_segments(segments, shape, device, position_ids, layout)
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
        packing: the packing; without one the count is returned as it came.
        counted: int64 ``[S]``, counted from the row's start, or None where a part of the model would count them.
    Returns:
        int64 ``[T]``, of this rank's tokens where the row is shared: as the caller gave them, or counted from the start
        of each segment.
    Raises:
        ValueError: positions of several axes.
    """
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


def _checked_mask(attention_mask: Any, shape: tuple[int, int]) -> Tensor | None:
    if attention_mask is None:
        return None
    if not isinstance(attention_mask, Tensor):
        raise ValueError(
            f"rmpad: attention_mask must be a tensor [batch, seq_len], a Packing or None, "
            f"found {type(attention_mask).__name__}"
        )
    if attention_mask.dim() != 2:
        raise ValueError(
            f"rmpad: attention_mask must be [batch, seq_len], found {list(attention_mask.shape)}; "
            "a mask of scores cannot be packed"
        )
    if tuple(attention_mask.shape) != shape:
        raise ValueError(
            f"rmpad: attention_mask is {list(attention_mask.shape)}, the input [{_text(shape)}]; "
            "they must agree, there is no cache"
        )
    return attention_mask


def _segments(
    shape: tuple[int, int],
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    kwargs: MutableMapping[str, Any],
) -> list[tuple[int, int]]:
    """``(start, length)`` of every segment in the flattened ``[B * S]``, in order, none empty."""
    boundaries = _taken_boundaries(kwargs)
    seq_idx = kwargs.pop("seq_idx", None)
    upper_bounds = {name: kwargs.pop(name) for name in MAX_LENGTH_NAMES if kwargs.get(name) is not None}
    if seq_idx is not None and tuple(seq_idx.shape) != shape:
        raise ValueError(f"rmpad: seq_idx is {list(seq_idx.shape)}, the input [{_text(shape)}]; they must agree")
    positions = _inferable_positions(position_ids, shape)

    # The one transfer from the device of a step; everything below is arithmetic on the host.
    on_host = _to_host({"mask": attention_mask, "seq_idx": seq_idx, "positions": positions} | boundaries)
    mask = on_host.get("mask")
    if mask is not None:
        _check_mask_values(mask)
        if bool((mask == 1).all()):
            mask = None

    if boundaries:
        segments = _segments_of_boundaries({name: on_host[name] for name in boundaries}, shape, mask)
        if seq_idx is not None and _segments_of_ids(on_host["seq_idx"] + 1, "seq_idx") != segments:
            raise ValueError(f"rmpad: seq_idx and {next(iter(boundaries))} do not name the same segments")
    elif seq_idx is not None:
        ids = on_host["seq_idx"]
        if bool((ids < 0).any()):
            raise ValueError("rmpad: seq_idx is negative; mark padding by an attention_mask of 0")
        segments = _segments_of_ids(ids + 1 if mask is None else (ids + 1) * (mask != 0), "seq_idx")
    elif mask is not None:
        segments = _segments_of_ids(mask, "attention_mask")
        if positions is not None:
            _check_no_restart(on_host["positions"], segments, shape)
    elif positions is not None:
        segments = _segments_of_positions(on_host["positions"].expand(shape))
    else:
        segments = [(row * shape[1], shape[1]) for row in range(shape[0]) if shape[1]]

    longest = max((length for _, length in segments), default=0)
    for name, bound in upper_bounds.items():
        if int(bound) < longest:
            raise ValueError(f"rmpad: {name} is {int(bound)}, the longest segment has {longest} tokens")
    return segments


def _taken_boundaries(kwargs: MutableMapping[str, Any]) -> dict[str, Tensor]:
    """The keywords that give ``cu_seqlens``, taken out; one tensor under several names is one entry."""
    found: dict[str, Tensor] = {}
    for name in CU_SEQLENS_NAMES:
        value = kwargs.pop(name, None)
        if value is None or any(value is other for other in found.values()):
            continue
        found[name] = torch.as_tensor(value)
        if found[name].dim() != 1 or found[name].numel() < 2:
            raise ValueError(f"rmpad: {name} must be [segments + 1], found {list(found[name].shape)}")
    return found


def _inferable_positions(position_ids: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """The position ids if they are one axis of the input: positions of several axes repeat and jump inside a text."""
    if position_ids is None:
        return None
    if position_ids.dim() not in (2, 3) or position_ids.shape[-1] != shape[1]:
        raise ValueError(
            f"rmpad: position_ids must be [batch, seq_len] or [axes, batch, seq_len] for [{_text(shape)}], "
            f"found {list(position_ids.shape)}"
        )
    if position_ids.shape[-2] not in (1, shape[0]):
        raise ValueError(f"rmpad: position_ids are {list(position_ids.shape)}, the input has {shape[0]} rows")
    return position_ids if position_ids.dim() == 2 else None


def _to_host(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """int64 copies on the CPU, by one transfer however many tensors there are."""
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    if not given:
        return {}
    away = {name: tensor for name, tensor in given.items() if tensor.device.type != "cpu"}
    here = {name: tensor.long() for name, tensor in given.items() if name not in away}
    if away:
        flat = torch.cat([tensor.reshape(-1).long() for tensor in away.values()]).cpu()
        parts = torch.split(flat, [tensor.numel() for tensor in away.values()])
        here |= {name: part.view(away[name].shape) for name, part in zip(away, parts, strict=True)}
    return here


def _check_mask_values(mask: Tensor) -> None:
    if bool((mask < 0).any()):
        raise ValueError("rmpad: attention_mask has negative values; it must be 0 for padding and 1 or a segment's id")


def _segments_of_boundaries(
    boundaries: Mapping[str, Tensor], shape: tuple[int, int], mask: Tensor | None
) -> list[tuple[int, int]]:
    name = next(iter(boundaries))
    edges: list[int] = boundaries[name].tolist()
    for other, values in boundaries.items():
        if values.tolist() != edges:
            raise ValueError(f"rmpad: {name} and {other} differ; queries and keys are the same tokens here")
    if shape[0] != 1:
        raise ValueError(f"rmpad: {name} describes one packed row, the input is [{_text(shape)}]")
    if mask is not None:
        raise ValueError(f"rmpad: {name} and an attention_mask with padding or segments cannot go together")
    if edges[0] != 0 or edges[-1] != shape[1]:
        raise ValueError(f"rmpad: {name} must run from 0 to {shape[1]}, found {edges[0]} to {edges[-1]}")
    lengths = [end - start for start, end in itertools.pairwise(edges)]
    if min(lengths) < 0:
        raise ValueError(f"rmpad: {name} decreases: {edges}")
    return [(start, length) for start, length in zip(edges, lengths, strict=False) if length]


def _segments_of_ids(ids: Tensor, source: str) -> list[tuple[int, int]]:
    """Runs of equal non-zero values inside the rows of ``[B, S]``."""
    starts = torch.ones_like(ids, dtype=torch.bool)
    starts[:, 1:] = ids[:, 1:] != ids[:, :-1]
    segments = [run for run, value in _runs(starts, ids) if value]
    rows: dict[int, set[int]] = {}
    flat = ids.flatten()
    values: list[int] = flat[[start for start, _ in segments]].tolist() if segments else []
    for (start, _), value in zip(segments, values, strict=True):
        row, column = divmod(start, ids.shape[1])
        seen = rows.setdefault(row, set())
        if value in seen:
            raise ValueError(
                f"rmpad: {source} has a hole: row {row} goes on at column {column} with a sequence that ended before it"
            )
        seen.add(value)
    return segments


def _segments_of_positions(positions: Tensor) -> list[tuple[int, int]]:
    starts = torch.ones_like(positions, dtype=torch.bool)
    starts[:, 1:] = positions[:, 1:] - positions[:, :-1] != 1
    return [run for run, _ in _runs(starts, positions)]


def _runs(starts: Tensor, values: Tensor) -> list[tuple[tuple[int, int], int]]:
    """``((start, length), first value)`` of the runs of a flattened ``[B, S]``, given where they start."""
    first = starts.flatten().nonzero().flatten()
    edges: list[int] = first.tolist()
    ends = [*edges[1:], starts.numel()]
    heads: list[int] = values.flatten()[first].tolist()
    return [((start, end - start), head) for start, end, head in zip(edges, ends, heads, strict=True)]


def _check_no_restart(positions: Tensor, segments: Sequence[tuple[int, int]], shape: tuple[int, int]) -> None:
    """Positions that start again inside a segment mean several sequences, which the mask does not say."""
    flat = positions.expand(shape).flatten()
    inside = torch.zeros_like(flat, dtype=torch.bool)
    for start, length in segments:
        inside[start + 1 : start + length] = True
    restarts = (inside & (flat == 0)).nonzero().flatten()
    if restarts.numel():
        row, column = divmod(int(restarts[0]), shape[1])
        raise ValueError(
            f"rmpad: position_ids start again at row {row}, column {column}, inside what attention_mask calls one "
            "sequence; number the sequences in the mask (1, 1, 2, 2, 0) or pass cu_seqlens"
        )


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


def _text(shape: tuple[int, int]) -> str:
    return f"{shape[0]}, {shape[1]}"
