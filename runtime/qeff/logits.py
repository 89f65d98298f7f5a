"""The one token of a row whose logits are wanted."""

import torch
from torch import Tensor


def last_token(hidden_states: Tensor, position_ids: Tensor) -> Tensor:
    """The hidden state at each row's largest position; of a row that is all pads, the first one.

    Args:
        hidden_states: ``[B, S, H]``.
        position_ids: ``[B, S]`` integers, -1 for a pad.
    Returns:
        ``[B, 1, H]``.
    """
    # int32: not every runtime has an ArgMax over int64.
    index = position_ids.to(torch.int32).argmax(1, keepdim=True)
    return torch.gather(hidden_states, 1, index.unsqueeze(-1).expand(-1, -1, hidden_states.shape[-1]))
