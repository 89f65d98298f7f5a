"""What export and generation must know of a transformed model, found by looking at the model itself.

Head counts and head widths are not read from the config: families spell them differently, keys and values may differ
in width, and some layers share another layer's buffer. One tiny forward shows what is really there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from runtime.qeff.cache import QEffDynamicCache
from runtime.qeff.generation import RopeLengths
from runtime.qeff.rotary import PrecomputedRotary


@dataclass(frozen=True)
class KVLayer:
    """One layer's buffers: keys `[rows, key_heads, ctx_len, key_dim]`, values likewise, `dtype` a torch dtype name."""

    index: int
    key_heads: int
    key_dim: int
    value_heads: int
    value_dim: int
    dtype: str

    @property
    def names(self) -> tuple[str, str]:
        return f"past_key.{self.index}", f"past_value.{self.index}"

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def shapes(self, rows: int, ctx_len: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the key and of the value buffer."""
        return (
            (rows, self.key_heads, ctx_len, self.key_dim),
            (rows, self.value_heads, ctx_len, self.value_dim),
        )


def kv_layers(model: nn.Module) -> tuple[KVLayer, ...]:
    """The layers of a transformed model that own KV buffers, by running one token through it.

    Layers that attend to another layer's buffer own none and do not appear; `index` is the slot in the cache. Raises
    ValueError where nothing was cached.
    """
    device = next(model.parameters()).device
    cache = QEffDynamicCache(ctx_len=1)
    zero = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with torch.no_grad():
        model(input_ids=zero, position_ids=zero, past_key_values=cache, use_cache=True)
    found = []
    for index, (keys, values) in enumerate(cache):
        found.append(
            KVLayer(
                index=index,
                key_heads=keys.shape[1],
                key_dim=keys.shape[3],
                value_heads=values.shape[1],
                value_dim=values.shape[3],
                dtype=str(keys.dtype).removeprefix("torch."),
            )
        )
    if not found:
        raise ValueError(f"{type(model).__name__} wrote no KV buffer: it is not a variant of a decoder with a KV cache")
    return tuple(found)


def rope_lengths(model: nn.Module) -> RopeLengths:
    """Combine what the model's rotary modules say; the smallest limit counts.

    `recompute` is what the generated causal-LM class states in `qeff_recompute_past_beyond_original_length` (emitted
    where upstream's `prepare_inputs_for_generation` drops the cache at the original length, False if absent).
    """
    rotaries = [module for module in model.modules() if isinstance(module, PrecomputedRotary)]
    rows = [plan.rows for module in rotaries for plan in module._qeff_plans.values() if plan.rows is not None]
    changes = [module.length_dependent_from for module in rotaries if module.length_dependent_from is not None]
    return RopeLengths(
        rows=min(rows, default=None),
        changes_above=min(changes, default=None),
        recompute=bool(getattr(model, "qeff_recompute_past_beyond_original_length", False)),
    )


def vocab_size(model: Any) -> int:
    """Rows of the input embedding: ids below it can be looked up."""
    return int(model.get_input_embeddings().weight.shape[0])
