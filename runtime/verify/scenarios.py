"""How the same prompts are fed: batch, padding side, chunks and context length. The answer must not depend on any of
it.
"""

from dataclasses import dataclass
from enum import Enum

import torch

from runtime.verify.prompts import DECODE_STEPS, Prompts


class Padding(Enum):
    """Where rows shorter than the longest are filled up."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True)
class Scenario:
    """One call of `generate`.

    rows: which prompts, in this order; chunk: prefill_seq_len; spare: KV slots beyond the fewest possible; steps:
    tokens to generate.
    """

    name: str
    rows: tuple[int, ...]
    padding: Padding
    chunk: int
    spare: int
    steps: int = DECODE_STEPS

    def ctx_len(self, prompts: Prompts) -> int:
        """The fewest slots (the last token is never fed back) and the spare ones."""
        return max(len(prompts.rows[row]) for row in self.rows) + self.steps - 1 + self.spare

    def batch(self, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
        """input_ids and attention_mask, int64 [batch, longest]; padding holds token 1, which no prompt has."""
        chosen = [prompts.rows[row] for row in self.rows]
        longest = max(len(row) for row in chosen)
        ids, mask = (
            torch.ones(len(chosen), longest, dtype=torch.int64),
            torch.zeros(len(chosen), longest, dtype=torch.int64),
        )
        for index, row in enumerate(chosen):
            at = slice(longest - len(row), longest) if self.padding is Padding.LEFT else slice(0, len(row))
            ids[index, at], mask[index, at] = torch.tensor(row), 1
        return ids, mask


_FEW = 6
"""Steps where decoding adds little to what the long scenarios of the same batch size show."""

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("one prompt, chunks of 5, exact context", (0,), Padding.RIGHT, chunk=5, spare=0),
    Scenario("one prompt in one piece, larger context", (0,), Padding.RIGHT, chunk=16, spare=19, steps=_FEW),
    Scenario("three prompts padded right, chunks of 4, exact context", (0, 1, 2), Padding.RIGHT, chunk=4, spare=0),
    Scenario(
        "three prompts padded left in one piece, larger context",
        (1, 0, 2),
        Padding.LEFT,
        chunk=16,
        spare=7,
        steps=_FEW,
    ),
    # The last chunk holds one token and three pads, and the token's slot is the last one: a pad written there is seen.
    Scenario("one prompt that fills the context, chunks of 4", (0,), Padding.RIGHT, chunk=4, spare=0, steps=1),
)

ESSENTIAL = tuple(scenario for scenario in SCENARIOS if scenario.steps == DECODE_STEPS)
"""For all cases but a family's default: what the others add does not depend on the configuration."""
