"""Rows of a table that says which keys each position sees."""

from typing import Any

from torch import Tensor


def table_rows(table: Tensor, position_ids: Tensor, key_length: Any) -> Tensor:
    """What the queries at these positions see of the first ``T`` keys.

    Source: upstream's ``table[:, :, key_length - query_length : key_length, :key_length]``, where the last query stands
    at the last key.

    Args:
        table: bool ``[1, 1, P, P]``, True where position (row) sees key position (column).
        position_ids: ``[B, S]`` integers, -1 for a pad, which gets row 0.
        key_length: ``T``, at most ``P``.
    Returns:
        bool ``[B, 1, S, T]``.
    """
    return table[0, 0, :, :key_length][position_ids.clamp(min=0)].unsqueeze(1)
