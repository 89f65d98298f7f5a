"""Eager attention with a boolean mask."""

from typing import Any

import torch
from torch import Tensor, nn

from runtime.qeff.masks import mask_scores
from runtime.qeff.tracing import static_indices, static_size


def repeat_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    """Repeats every KV head for the query heads that share it, as ``repeat_interleave(n_rep, dim=1)`` does.

    One Gather in an exported graph; upstream's expand and reshape become some thirty nodes that compute shapes.

    Args:
        hidden_states: ``[B, Hkv, T, D]``.
        n_rep: query heads per KV head.
    Returns:
        ``[B, Hkv * n_rep, T, D]``.
    """
    if n_rep == 1:
        return hidden_states
    heads = static_size(hidden_states, 1)
    shared = [head for head in range(heads) for _ in range(n_rep)]
    return hidden_states.index_select(1, static_indices(shared, hidden_states.device))


def eager_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, softmax in float32.

    Source: ``eager_attention_forward`` of ``transformers.models.llama.modeling_llama``, with a boolean mask in place of
    the added one.

    Args:
        module: the attention module; ``num_key_value_groups`` is read.
        query: ``[B, H, S, Dk]``.
        key: ``[B, Hkv, T, Dk]``.
        value: ``[B, Hkv, T, Dv]``.
        attention_mask: bool, broadcastable to ``[B, H, S, T]``, True where hidden, or None.
        scaling: factor of the scores.
        dropout: applied to the weights in training mode.
        kwargs: not used, as upstream.
    Returns:
        output ``[B, S, H, Dv]`` and weights ``[B, H, S, T]``, both of the query's dtype.
    Raises:
        TypeError: the mask is not boolean.
    """
    key_states = repeat_kv(key, module.num_key_value_groups)
    value_states = repeat_kv(value, module.num_key_value_groups)

    attn_weights = torch.matmul(query, key_states.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attn_weights = mask_scores(attn_weights, attention_mask)

    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value_states)
    attn_output = attn_output.transpose(1, 2).contiguous()

    return attn_output, attn_weights
