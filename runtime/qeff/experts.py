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
