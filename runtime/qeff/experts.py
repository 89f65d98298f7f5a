"""Experts over a batch of (token, choice) pairs: the traceable form of a loop over the experts that were hit.

Shapes: ``N`` tokens, ``K`` experts chosen for each, ``H`` hidden. Pair ``n * K + k`` is token ``n``'s ``k``-th choice.
"""

import torch
from torch import Tensor


def routed_tokens(hidden_states: Tensor, top_k_index: Tensor) -> Tensor:
    """Each token once for every expert it chose.

    Args:
        hidden_states: ``[N, H]``.
        top_k_index: int64 ``[N, K]``, the chosen experts.
    Returns:
        ``[N * K, H]``.
    """
    return hidden_states.unsqueeze(1).expand(-1, top_k_index.shape[-1], -1).reshape(-1, hidden_states.shape[-1])


def expert_linear(states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``nn.functional.linear`` with a weight of its own for every row.

    Args:
        states: ``[N * K, I]``.
        weight: ``[N * K, O, I]``, the chosen experts' weights.
        bias: ``[N * K, O]`` or None.
    Returns:
        ``[N * K, O]``.
    """
    result = torch.bmm(weight, states.unsqueeze(-1)).squeeze(-1)
    return result if bias is None else result + bias


def expert_matmul(states: Tensor, weight: Tensor) -> Tensor:
    """``states @ weight`` with a weight of its own for every row.

    Args:
        states: ``[N * K, I]``.
        weight: ``[N * K, I, O]``, the chosen experts' weights.
    Returns:
        ``[N * K, O]``.
    """
    return torch.bmm(states.unsqueeze(1), weight).squeeze(1)


def sum_over_choices(states: Tensor, top_k_index: Tensor) -> Tensor:
    """Adds up what a token's experts returned.

    Args:
        states: ``[N * K, H]``, already weighted.
        top_k_index: int64 ``[N, K]``.
    Returns:
        ``[N, H]``.
    """
    return states.view(-1, top_k_index.shape[-1], states.shape[-1]).sum(dim=1)


def count_of_each(index: Tensor, experts: int) -> Tensor:
    """How many pairs chose each expert.

    Args:
        index: int64 of any shape, expert numbers.
        experts: ``E``, how many experts there are.
    Returns:
        int64 ``[E]``.
    """
    return (index.reshape(-1, 1) == torch.arange(experts, device=index.device)).sum(dim=0)


def expert_of_row(rows: int, counts: Tensor) -> Tensor:
    """Which expert's group each row is in, when rows are sorted by expert.

    Args:
        rows: ``M``, how many rows there are; the sum of ``counts``.
        counts: integers ``[E]``, how many rows each expert has.
    Returns:
        int64 ``[M]``.
    """
    ends = counts.cumsum(dim=0)
    return (torch.arange(rows, device=counts.device).unsqueeze(-1) >= ends).sum(dim=-1)


def grouped_linear(states: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """``nn.functional.linear`` of each expert's group of rows with that expert's weight.

    Args:
        states: ``[M, I]``, sorted by expert.
        weight: ``[E, O, I]``, all experts' weights.
        counts: integers ``[E]``, how many rows each expert has.
    Returns:
        ``[M, O]``.
    """
    return expert_linear(states, weight[expert_of_row(states.shape[0], counts)])


def grouped_matmul(states: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """``states @ weight`` of each expert's group of rows with that expert's weight.

    Args:
        states: ``[M, I]``, sorted by expert.
        weight: ``[E, I, O]``, all experts' weights.
        counts: integers ``[E]``, how many rows each expert has.
    Returns:
        ``[M, O]``.
    """
    return expert_matmul(states, weight[expert_of_row(states.shape[0], counts)])


def add_rows(start: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """``start.index_add(0, index, rows)``, exported as a scatter that adds where an index repeats.

    Args:
        start: ``[N, H]``.
        index: int64 ``[M]`` below ``N``; an index may repeat.
        rows: ``[M, H]`` of the dtype of ``start``.
    Returns:
        ``[N, H]``.
    """
    return start.scatter_add(0, index.unsqueeze(-1).expand(-1, rows.shape[-1]), rows)
