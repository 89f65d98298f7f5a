"""Rotary frequencies that upstream chooses by the largest position of a call: one choice for a whole batch."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_BY_LENGTH = ("dynamic", "longrope")


def length_limits(config: Any) -> Iterator[tuple[str, int]]:
    """The rope types of a config whose frequencies depend on the longest sequence, and the length from which they do.

    Args:
        config: the model's; its text part is read.
    """
    text = config.get_text_config()
    for rope in _ropes(getattr(text, "rope_parameters", None)):
        kind = str(rope.get("rope_type", "default"))
        if any(word in kind for word in _BY_LENGTH):
            limit = rope.get("original_max_position_embeddings") or text.max_position_embeddings
            yield kind, min(limit, text.max_position_embeddings) if "dynamic" in kind else limit


def check_frequencies(config: Any, lengths: Sequence[int]) -> None:
    """Refuses a batch whose longest sequence would choose the frequencies of shorter ones.

    Upstream's padded batch lets it; one sequence at a time is rotated otherwise.

    Args:
        config: the model's.
        lengths: tokens of each sequence.
    Raises:
        NotImplementedError: a sequence beyond the length from which frequencies change, with shorter ones beside it.
    """
    for kind, limit in length_limits(config):
        # longrope has one set of frequencies beyond the limit, dynamic one for each length
        beside = min(lengths) < max(lengths) if "dynamic" in kind else min(lengths) <= limit
        if max(lengths) > limit and beside:
            together = "length" if "dynamic" in kind else "side of that length"
            raise NotImplementedError(
                f"rmpad: rope type {kind!r} and sequences of {min(lengths)} to {max(lengths)} tokens in one batch: "
                f"above {limit} the longest one would choose the frequencies of all; put sequences of one {together} "
                "into a batch"
            )


def _ropes(parameters: Any) -> list[Mapping[str, Any]]:
    """The rope settings of a config: one for all layers, or one per layer type."""
    if not isinstance(parameters, Mapping):
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]
