"""The prompts that models are compared on."""

from dataclasses import dataclass

import torch

from runtime.verify.sizes import FIRST_FREE_TOKEN, VOCAB, WINDOW

DECODE_STEPS = 17
"""Tokens generated per prompt: one from the prefill, then 16 decode steps."""

LONG = 2 * WINDOW - 1
"""Longer than any window (7) and chunk, and not a multiple of them."""

LENGTHS = (LONG, 2, 5)


@dataclass(frozen=True)
class Prompts:
    """Token ids of different lengths, one tuple per row."""

    rows: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        return max(len(row) for row in self.rows)


def random_prompts(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Prompts:
    """Prompts of the given lengths without special tokens; the same for the same seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    rows = (torch.randint(FIRST_FREE_TOKEN, VOCAB, (length,), generator=generator) for length in lengths)
    return Prompts(tuple(tuple(int(token) for token in row) for row in rows))
