"""Where the sequences of a batch lie, read from what the caller gave: a mask, positions, ids or boundaries.

The one transfer from the device of a step is here; what follows it is arithmetic on the host.
"""

import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

CU_SEQLENS_NAMES = ("cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k")
MAX_LENGTH_NAMES = ("max_seqlen", "max_length_q", "max_length_k")


def segments_of(
    shape: tuple[int, int],
    position_ids: Tensor | None,
    attention_mask: Any,
    kwargs: MutableMapping[str, Any],
) -> list[tuple[int, int]]:
    """The segments of a batch, from the sources that ``packing.pack`` lists.

    Args:
        shape: the input's ``(B, S)``.
        position_ids: ``[B, S]``, ``[1, S]``, ``[k, B, S]``, ``[k, 1, S]`` or None.
        attention_mask: ``[B, S]`` or None.
        kwargs: the forward's other keywords; those that say where sequences lie are taken out.
    Returns:
        ``(start, length)`` of every segment in the flattened ``[B * S]``, in order, none empty.
    Raises:
        ValueError: inputs that are not of the batch's shape, contradict each other or have holes.
    """
    attention_mask = _checked_mask(attention_mask, shape)
    boundaries = _taken_boundaries(kwargs)
    seq_idx = kwargs.pop("seq_idx", None)
    upper_bounds = {name: kwargs.pop(name) for name in MAX_LENGTH_NAMES if kwargs.get(name) is not None}
    if seq_idx is not None and tuple(seq_idx.shape) != shape:
        raise ValueError(f"rmpad: seq_idx is {list(seq_idx.shape)}, the input [{shape_text(shape)}]; they must agree")
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
            f"rmpad: attention_mask is {list(attention_mask.shape)}, the input [{shape_text(shape)}]; "
            "they must agree, there is no cache"
        )
    return attention_mask


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
            f"rmpad: position_ids must be [batch, seq_len] or [axes, batch, seq_len] for [{shape_text(shape)}], "
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
        raise ValueError(f"rmpad: {name} describes one packed row, the input is [{shape_text(shape)}]")
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


def shape_text(shape: tuple[int, int]) -> str:
    """``B, S``, for a message."""
    return f"{shape[0]}, {shape[1]}"
