"""Greedy generation over position-addressed models: prompts, prefill chunks, and the step loop.

Nothing here knows whether PyTorch or ONNX Runtime computes a step. A `StepRunner` owns the KV buffers and is given
`input_ids` and `position_ids` of one width for the whole batch; a position of -1 marks a token that is not there. So a
row may sit out a step, rows may advance by different amounts, and prompts of different lengths share one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

PAD_POSITION = -1


class StepRunner(Protocol):
    """One forward over the whole batch; KV buffers stay with the runner between calls."""

    def step(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """`input_ids`, `position_ids` int64 `[batch, width]` -> float32 `[batch, vocab]`.

        The logits are those at each row's largest position. Those of a row whose positions are all -1 mean nothing.
        """
        ...


@dataclass(frozen=True)
class RopeLengths:
    """What a model's rotary embedding says about lengths.

    `rows`: positions its tables hold, None where nothing is tabulated.
    `changes_above`: length above which its frequencies depend on the sequence's length (longrope, dynamic NTK).
    `recompute`: whether keys cached before a row grew past `changes_above` are computed again. Upstream says so by
    dropping the cache at that length (phi3's `prepare_inputs_for_generation`); where it does not, old keys keep the
    frequencies they were rotated with.
    """

    rows: int | None = None
    changes_above: int | None = None
    recompute: bool = False


class Chunk(NamedTuple):
    """What one step is fed: int64 `[batch, width]` each, `position_ids` -1 where there is no token."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor


@dataclass(frozen=True)
class Prompts:
    """The batch's real tokens, row by row, without padding (1-D int64 each, never empty)."""

    rows: tuple[torch.Tensor, ...]

    @property
    def longest(self) -> int:
        return max(len(row) for row in self.rows)

    @classmethod
    def from_padded(cls, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, *, vocab_size: int) -> Prompts:
        """Read rows out of a padded batch.

        `input_ids` integer `[batch, seq]`; `attention_mask` bool or integer `[batch, seq]`, 1 for a real token: each
        row's ones must be one contiguous block, so padding may be on the left, on the right, or both. None means that
        every token is real. Padding tokens may hold any id.

        Raises TypeError for anything but integer tensors, ValueError for other shapes, an empty prompt, a mask with
        holes, and token ids outside `[0, vocab_size)`.
        """
        _require_integers("input_ids", input_ids)
        if input_ids.dim() != 2:
            raise ValueError(
                f"input_ids must be [batch, sequence], got shape {list(input_ids.shape)}; "
                "a single prompt is input_ids.unsqueeze(0)"
            )
        batch, width = input_ids.shape
        if batch == 0 or width == 0:
            raise ValueError(f"the prompt is empty: input_ids has shape {list(input_ids.shape)}")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
        real = _as_mask(attention_mask, input_ids.shape)

        rows: list[torch.Tensor] = []
        for index in range(batch):
            where = real[index].nonzero().flatten()
            if len(where) == 0:
                raise ValueError(f"row {index} has an empty prompt: its attention_mask is all zeros")
            first, last = int(where[0]), int(where[-1])
            if last - first + 1 != len(where):
                raise ValueError(
                    f"row {index} of attention_mask has a hole: its ones run from {first} to {last}, with zeros "
                    "in between; pad on the left or on the right only"
                )
            tokens = input_ids[index, first : last + 1].to(device="cpu", dtype=torch.int64)
            outside = (tokens < 0) | (tokens >= vocab_size)
            if bool(outside.any()):
                column = int(outside.nonzero()[0])
                raise ValueError(
                    f"input_ids[{index}, {first + column}] is {int(tokens[column])}, outside the vocabulary "
                    f"of {vocab_size} tokens"
                )
            rows.append(tokens)
        return cls(tuple(rows))


def _require_integers(name: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of integers, got {type(value).__name__}")
    if value.dtype.is_floating_point or value.dtype.is_complex or value.dtype is torch.bool:
        raise TypeError(f"{name} must hold integers (torch.int64), got {value.dtype}")


def _as_mask(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"attention_mask must be a torch.Tensor, got {type(mask).__name__}")
    if mask.dtype is not torch.bool:
        _require_integers("attention_mask", mask)
    if mask.shape != shape:
        raise ValueError(f"attention_mask has shape {list(mask.shape)}, input_ids has {list(shape)}")
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("attention_mask may only hold 0 (padding) and 1 (token)")
    return mask.to(device="cpu", dtype=torch.bool)


def check_lengths(
    prompts: Prompts, *, generation_len: int, prefill_seq_len: int, ctx_len: int, rope: RopeLengths
) -> None:
    """Refuse lengths that cannot be honoured: ValueError (TypeError where a length is no integer)."""
    for name, value in (
        ("generation_len", generation_len),
        ("prefill_seq_len", prefill_seq_len),
        ("ctx_len", ctx_len),
    ):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    # The last generated token is never fed back, so it needs no slot.
    needed = prompts.longest + generation_len - 1
    if ctx_len < needed:
        raise ValueError(
            f"ctx_len={ctx_len} is too small: the longest prompt has {prompts.longest} tokens and "
            f"generation_len={generation_len} feeds {generation_len - 1} more, so {needed} KV slots are needed; "
            f"pass ctx_len>={needed}, a shorter prompt or a smaller generation_len"
        )
    if rope.rows is not None and needed > rope.rows:
        raise ValueError(
            f"the longest prompt has {prompts.longest} tokens and generation_len={generation_len} feeds "
            f"{generation_len - 1} more, but the model's rotary tables end after {rope.rows} positions; build the "
            f"model with max_seq_len_cached>={needed} if its rope is meant to reach that far"
        )


def prefill_chunks(rows: Sequence[torch.Tensor], width: int) -> Iterator[Chunk]:
    """Consecutive chunks of `width` positions, until the longest row is through.

    A row that ended in an earlier chunk has only -1 positions in the later ones.
    """
    longest = max(len(row) for row in rows)
    for start in range(0, longest, width):
        yield _chunk([(start, row[start : start + width]) for row in rows], width)


def _chunk(spans: Sequence[tuple[int, torch.Tensor]], width: int) -> Chunk:
    """One step's inputs from each row's (first position, tokens); the tokens come first, padding after them."""
    input_ids = torch.zeros(len(spans), width, dtype=torch.int64)
    position_ids = torch.full((len(spans), width), PAD_POSITION, dtype=torch.int64)
    for index, (start, tokens) in enumerate(spans):
        input_ids[index, : len(tokens)] = tokens
        position_ids[index, : len(tokens)] = torch.arange(start, start + len(tokens))
    return Chunk(input_ids, position_ids)


def generate_greedy(
    runner: StepRunner, prompts: Prompts, *, generation_len: int, prefill_seq_len: int, rope: RopeLengths
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield `generation_len` times (token ids int64 `[batch]`, the float32 logits `[batch, vocab]` they maximise).

    Prompts are fed in chunks of `prefill_seq_len`; a row keeps the logits of *its* last chunk. There is one exception:
    if a prompt is longer than `rope.changes_above`, all prompts go in as a single chunk. Keys of an earlier chunk
    would be rotated with the frequencies of a shorter sequence, whereas upstream sees the whole prompt at once.
    """
    sequences = list(prompts.rows)
    width = prefill_seq_len
    if rope.changes_above is not None and prompts.longest > rope.changes_above:
        width = prompts.longest

    last_position = torch.tensor([len(row) - 1 for row in sequences])
    logits: torch.Tensor | None = None
    for chunk in prefill_chunks(sequences, width):
        fresh = runner.step(*chunk)
        ends_here = chunk.position_ids.amax(dim=1) == last_position
        logits = fresh if logits is None else torch.where(ends_here[:, None], fresh, logits)
    if logits is None:  # prompts are never empty
        raise AssertionError("prefill fed no chunk")

    for remaining in reversed(range(generation_len)):
        tokens = logits.argmax(dim=-1)
        yield tokens, logits
        if remaining:
            sequences = [torch.cat((row, tokens[i : i + 1])) for i, row in enumerate(sequences)]
            spans = [_next_span(row, rope) for row in sequences]
            logits = runner.step(*_chunk(spans, max(len(fed) for _, fed in spans)))


def _next_span(sequence: torch.Tensor, rope: RopeLengths) -> tuple[int, torch.Tensor]:
    """(first position, tokens) that a row feeds next: its newest token, or all of it where cached keys went stale."""
    length = len(sequence)
    if rope.recompute and rope.changes_above is not None and length == rope.changes_above + 1:
        return 0, sequence
    return length - 1, sequence[-1:]
