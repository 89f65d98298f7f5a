"""Rotary frequencies that upstream chooses by the largest position of a call: one choice for a whole batch."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

logger = logging.getLogger(__name__)

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


def tell_of_shared_frequencies(config: Any, lengths: Sequence[int]) -> None:
    """Warns, once per type and limit, when the longest sequence of a batch chooses the frequencies of shorter ones.

    Upstream's padded batch does the same. One sequence at a time would not.

    Args:
        config: the model's.
        lengths: tokens of each sequence.
    """
    for kind, limit in length_limits(config):
        if max(lengths) > limit and min(lengths) < max(lengths):
            _warn(kind, limit)


@lru_cache
def _warn(kind: str, limit: int) -> None:
    logger.warning(
        "rope type %r: a sequence longer than %d tokens chooses the frequencies of its whole batch, here as in "
        "upstream's padded batch; sort batches by length to keep them apart",
        kind,
        limit,
    )


def _ropes(parameters: Any) -> list[Mapping[str, Any]]:
    """The rope settings of a config: one for all layers, or one per layer type."""
    if not isinstance(parameters, Mapping):
        return []
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    return nested or [parameters]
