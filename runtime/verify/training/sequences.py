"""The sequences that models are trained on, and the forms in which the same sequences are handed over as a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from runtime.verify.scenarios import Padding
from runtime.verify.sizes import FIRST_FREE_TOKEN, VOCAB, WINDOW

LENGTHS = (2 * WINDOW + 1, 1, 23, 2, 9)
"""Longer than any window (7, and 14 in local attention) and chunk (7, 8), odd or tiny; the first and the last have
neighbours on one side only.
"""
EQUAL_LENGTHS = (19, 19, 19, 19)
"""For rope whose frequencies depend on the length, where a batch and a sequence alone differ in upstream itself."""

IGNORED = -100
PAD = 1
"""A token that no sequence has."""


@dataclass(frozen=True)
class Sample:
    """One sequence: tokens, and labels as long as them, where some are -100.

    first: the first label that is a target. It is 1, as the first token is predicted by nothing, but for types that do
    not shift labels, or do it twice.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    first: int = 1

    @property
    def targets(self) -> int:
        """How many labels are predicted and counted."""
        return sum(label != IGNORED for label in self.labels[self.first :])


def random_samples(lengths: Sequence[int] = LENGTHS, seed: int = 0, first: int = 1) -> tuple[Sample, ...]:
    """Samples of the given lengths; the same for the same seed.

    The first has a prompt without labels, the last one has them at its end only, and the shortest of more than one
    token has none at all.
    """
    generator = torch.Generator().manual_seed(3000 + seed)
    rows = [
        tuple(torch.randint(FIRST_FREE_TOKEN, VOCAB, (length,), generator=generator).tolist()) for length in lengths
    ]
    return tuple(Sample(row, _labels(row, index, len(rows)), first) for index, row in enumerate(rows))


def _labels(row: tuple[int, ...], index: int, count: int) -> tuple[int, ...]:
    if len(row) == 2:
        kept = 0
    elif index == 0:
        kept = len(row) - 4
    elif index == count - 1:
        kept = 3
    else:
        kept = len(row)
    return (*(IGNORED for _ in row[kept:]), *(row[len(row) - kept :]))


def replaced(samples: Sequence[Sample], index: int, seed: int) -> tuple[Sample, ...]:
    """The samples with all tokens of one of them changed, its length kept."""
    (new,) = random_samples((len(samples[index].tokens),), seed + 500)
    tokens = tuple(
        a if a != b else FIRST_FREE_TOKEN + (b - FIRST_FREE_TOKEN + 1) % (VOCAB - FIRST_FREE_TOKEN)
        for a, b in zip(new.tokens, samples[index].tokens, strict=True)
    )
    return (*samples[:index], replace(samples[index], tokens=tokens), *samples[index + 1 :])


@dataclass(frozen=True)
class Batch:
    """Samples as a model is given them.

    inputs: tensors by keyword, without labels; labels: int64, shaped like `input_ids`; samples: in the order in which
    their tokens are packed; mask: bool [rows, columns], True at their tokens, or None where the input is one packed
    row.
    """

    inputs: dict[str, torch.Tensor | int]
    labels: torch.Tensor
    samples: tuple[Sample, ...]
    mask: torch.Tensor | None = field(default=None)

    @property
    def tokens(self) -> int:
        return sum(len(sample.tokens) for sample in self.samples)

    def packed_logits(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Logits [1, tokens, vocab] as one [length, vocab] per sample. Raises ValueError for another shape."""
        if logits.dim() != 3 or logits.shape[:2] != (1, self.tokens):
            raise ValueError(f"logits are {list(logits.shape)}, not packed: [1, {self.tokens}, vocab]")
        return list(torch.split(logits[0], [len(sample.tokens) for sample in self.samples]))

    def padded_logits(self, logits: torch.Tensor) -> list[torch.Tensor]:
        """Logits [rows, columns, vocab] as one [length, vocab] per sample.

        Raises ValueError for another shape, or if a logit at padding is not zero.
        """
        if self.mask is None:
            return self.packed_logits(logits)
        if logits.shape[:-1] != self.mask.shape:
            raise ValueError(f"logits are {list(logits.shape)}, not like the input: {[*self.mask.shape]} and vocab")
        if bool(logits[~self.mask].any()):
            raise ValueError("logits at padding are not zero")
        return self.packed_logits(logits[self.mask][None])


def padded_right(samples: Sequence[Sample], extra: int = 0) -> Batch:
    """One sample per row, padding behind it; `extra` columns of nothing but padding."""
    return _padded([[sample] for sample in samples], Padding.RIGHT, extra)


def padded_left(samples: Sequence[Sample]) -> Batch:
    """One sample per row, padding before it."""
    return _padded([[sample] for sample in samples], Padding.LEFT)


def with_position_ids(batch: Batch) -> Batch:
    """The batch with positions that count the tokens of each row; padding has position 0, as trainers do it."""
    if batch.mask is None:
        raise ValueError("the batch has no mask to count positions by")
    positions = (batch.mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return Batch({**batch.inputs, "position_ids": positions}, batch.labels, batch.samples, batch.mask)


def with_masked_row(samples: Sequence[Sample]) -> Batch:
    """Rows padded right, and one among them without any token of its own."""
    rows = [[sample] for sample in samples]
    return _padded([*rows[:2], [], *rows[2:]], Padding.RIGHT)


def unpadded(samples: Sequence[Sample]) -> Batch:
    """Samples of one length as rows, without a mask. Raises ValueError for different lengths."""
    if len({len(sample.tokens) for sample in samples}) != 1:
        raise ValueError("samples of different lengths need padding")
    whole = _padded([[sample] for sample in samples], Padding.RIGHT)
    return Batch({"input_ids": whole.inputs["input_ids"]}, whole.labels, whole.samples, whole.mask)


def with_segment_mask(samples: Sequence[Sample]) -> Batch:
    """Two samples per row, told apart by a mask of 1, 2 and 0 for padding."""
    rows = [list(samples[index : index + 2]) for index in range(0, len(samples), 2)]
    return _padded(rows, Padding.RIGHT)


def with_cu_seqlens(samples: Sequence[Sample]) -> Batch:
    """One packed row, and where its segments start and end: int32 [samples + 1]."""
    batch = _packed(samples)
    return Batch({**batch.inputs, "cu_seqlens": _ends(samples)}, batch.labels, batch.samples)


def with_flash_keywords(samples: Sequence[Sample]) -> Batch:
    """One packed row as upstream's flattening collator makes it."""
    batch, ends = _packed(samples), _ends(samples)
    longest = max(len(sample.tokens) for sample in samples)
    extra: dict[str, torch.Tensor | int] = {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
        "position_ids": _restarting(samples),
    }
    return Batch({**batch.inputs, **extra}, batch.labels, batch.samples)


def with_restarting_positions(samples: Sequence[Sample]) -> Batch:
    """One packed row whose positions start anew with every segment."""
    batch = _packed(samples)
    return Batch({**batch.inputs, "position_ids": _restarting(samples)}, batch.labels, batch.samples)


def _packed(samples: Sequence[Sample]) -> Batch:
    ids = torch.tensor([[token for sample in samples for token in sample.tokens]])
    labels = torch.tensor([[label for sample in samples for label in sample.labels]])
    return Batch({"input_ids": ids}, labels, tuple(samples))


def _ends(samples: Sequence[Sample]) -> torch.Tensor:
    lengths = torch.tensor([0, *(len(sample.tokens) for sample in samples)])
    return lengths.cumsum(0).to(torch.int32)


def _restarting(samples: Sequence[Sample]) -> torch.Tensor:
    return torch.cat([torch.arange(len(sample.tokens)) for sample in samples])[None]


def _padded(rows: Sequence[Sequence[Sample]], padding: Padding, extra: int = 0) -> Batch:
    """Rows of samples one after the other, numbered from 1 in the mask, filled up with padding."""
    columns = max(sum(len(sample.tokens) for sample in row) for row in rows) + extra
    ids = torch.full((len(rows), columns), PAD)
    labels = torch.full((len(rows), columns), IGNORED)
    numbers = torch.zeros(len(rows), columns, dtype=torch.int64)
    for index, row in enumerate(rows):
        at = columns - sum(len(sample.tokens) for sample in row) if padding is Padding.LEFT else 0
        for number, sample in enumerate(row, start=1):
            here = slice(at, at + len(sample.tokens))
            ids[index, here] = torch.tensor(sample.tokens)
            labels[index, here] = torch.tensor(sample.labels)
            numbers[index, here] = number
            at = here.stop
    samples = tuple(sample for row in rows for sample in row)
    return Batch({"input_ids": ids, "attention_mask": numbers}, labels, samples, numbers > 0)


def labelled_padding(batch: Batch) -> Batch:
    """The batch with a token instead of -100 as the label of its padding, as from a copy of `input_ids`.

    Padding is removed and its labels with it, so nothing may change.
    """
    if batch.mask is None:
        raise ValueError("the batch has no padding")
    labels = batch.labels.masked_fill(~batch.mask, FIRST_FREE_TOKEN)
    return Batch(batch.inputs, labels, batch.samples, batch.mask)
