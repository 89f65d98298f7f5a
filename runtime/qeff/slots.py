"""How many slots a call attends to."""

from typing import Any

from torch import Tensor

from runtime.qeff.cache import QEffDynamicCache


def slot_count(past_key_values: Any, comp_ctx_lengths: Tensor | None) -> Any:
    """``T``, the number of keys that attention sees: upstream's tokens seen plus tokens new.

    Args:
        past_key_values: the cache, or buffers that `QEffDynamicCache.from_legacy_cache` takes.
        comp_ctx_lengths: None, or a tensor whose last dimension's length is ``T``.
    Returns:
        an int, or the size's symbol while a graph is traced.
    """
    if comp_ctx_lengths is not None:
        return comp_ctx_lengths.shape[-1]
    return QEffDynamicCache.from_legacy_cache(past_key_values).get_seq_length()
