"""Compares tokens and logits with upstream's."""

from dataclasses import dataclass

import torch

from runtime.verify.reference import Reference

TOLERANCES = {"kv": 1e-4, "ort": 1e-3}
"""Largest logit error relative to the range of upstream's logits, by stage."""


@dataclass(frozen=True)
class Divergence:
    """The first token that differs in a row, and how near a tie upstream was there (relative to its logits' range)."""

    row: int
    step: int
    expected: int
    found: int
    margin: float


@dataclass(frozen=True)
class Difference:
    """How far an answer is from upstream's.

    error: max |logit - upstream's| / range of upstream's logits, up to and including each row's first differing token;
    divergences: the rows whose tokens differ.
    """

    error: float
    divergences: tuple[Divergence, ...] = ()

    def within(self, tolerance: float) -> bool:
        """Same tokens, and logits within the tolerance. A differing token is never excused by a near tie."""
        return not self.divergences and self.error <= tolerance


def compare(expected: Reference, rows: tuple[int, ...], tokens: torch.Tensor, logits: torch.Tensor) -> Difference:
    """Compares with the given rows of a reference.

    tokens: integer [len(rows), n]; logits: float32 [len(rows), n, vocab], n at most the reference's steps. A logit
    that is no number counts as an infinite error. Raises ValueError for other shapes.
    """
    steps = tokens.shape[1]
    wanted_tokens, wanted_logits = expected.tokens[list(rows), :steps], expected.logits[list(rows), :steps]
    if tokens.shape != wanted_tokens.shape or logits.shape != wanted_logits.shape:
        raise ValueError(
            f"found tokens {list(tokens.shape)} and logits {list(logits.shape)}, "
            f"upstream has {list(wanted_tokens.shape)} and {list(wanted_logits.shape)}"
        )
    margins = expected.margins()
    errors = torch.nan_to_num(
        (logits.float() - wanted_logits).abs().amax(dim=-1), nan=float("inf"), posinf=float("inf")
    )
    worst, divergences = 0.0, []
    for index, row in enumerate(rows):
        differing = (tokens[index] != wanted_tokens[index]).nonzero().flatten().tolist()
        until = differing[0] + 1 if differing else steps
        worst = max(worst, float(errors[index, :until].max()))
        if differing:
            step = differing[0]
            divergences.append(
                Divergence(
                    row, step, int(wanted_tokens[index, step]), int(tokens[index, step]), float(margins[row, step])
                )
            )
    return Difference(worst / expected.span, tuple(divergences))
