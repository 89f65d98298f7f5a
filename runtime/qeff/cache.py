"""Fixed-size KV buffers that are addressed by position.

A layer's buffers are ``[B, Hkv, C, D]``: the state of position ``p`` lives in slot ``p``, whatever was written before.
So prefill and decode are one operation, and a pad (position -1) is simply not written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from runtime.qeff.ops import ctx_gather, ctx_gather_cb, ctx_scatter, ctx_scatter_cb
from runtime.qeff.tracing import static_size, values_are_known

KeyValue = tuple[Tensor, Tensor]
CacheArguments = Mapping[str, Any]


class _Reads:
    """The slots that a call reads: of one call's layers, only the first computes them during an export.

    Outside an export they are computed every time; a caller may change its position ids in place between two calls.
    """

    def __init__(self) -> None:
        self._recorded: tuple[Tensor, int, KeyValue] | None = None

    def slots(self, position_ids: Tensor, length: Any, length_now: int) -> KeyValue:
        """Slots ``[B, 1, L]``, and which of them are after the row's largest position, ``[B, 1, L, 1]``.

        Args:
            position_ids: ``[B, S]``.
            length: ``L``, a traced size during an export.
            length_now: ``L`` as a number; two layers share their slots if they agree in it.
        """
        if not torch.onnx.is_in_onnx_export():
            self._recorded = None
            return _slots_to_read(position_ids, length)
        if self._recorded is None or self._recorded[0] is not position_ids or self._recorded[1] != length_now:
            self._recorded = (position_ids, length_now, _slots_to_read(position_ids, length))
        return self._recorded[2]


class QEffDynamicLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's key and value buffers.

    Args:
        ctx_len: slots of a buffer that is allocated by the first write; not needed where buffers are given.
        cache_batch_size: rows of such a buffer; by default those of the first states.
        reads: shared by the layers of one cache.
    """

    is_compileable = False
    is_sliding = False

    keys: Tensor | None
    values: Tensor | None

    def __init__(
        self, ctx_len: int | None = None, cache_batch_size: int | None = None, reads: _Reads | None = None
    ) -> None:
        super().__init__()
        self._reads = _Reads() if reads is None else reads
        self.ctx_len = ctx_len
        self.cache_batch_size = cache_batch_size

    @classmethod
    def from_buffers(cls, keys: Tensor, values: Tensor, reads: _Reads | None = None) -> "QEffDynamicLayer":
        """Wraps ``[B, Hkv, C, Dk]`` and ``[B, Hkv, C, Dv]`` without copying.

        Raises:
            TypeError: they are not tensors.
            ValueError: they are not 4-D. The dimensions cannot be compared while tracing, so they are not.
        """
        for name, buffer in (("key", keys), ("value", values)):
            if not isinstance(buffer, Tensor):
                raise TypeError(f"past_key_values: a {name} buffer must be a tensor, found {type(buffer).__name__}")
            if buffer.dim() != 4:
                raise ValueError(
                    f"past_key_values: a {name} buffer must be [batch, heads, ctx_len, head_dim], found "
                    f"{tuple(buffer.shape)}"
                )
        layer = cls(reads=reads)
        layer.keys, layer.values = keys, values
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.is_initialized = True
        return layer

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates zeros for states ``[B, Hkv, S, Dk]`` and ``[B, Hkv, S, Dv]``.

        Raises:
            ValueError: the buffer length is not known.
        """
        if self.ctx_len is None:
            raise ValueError(
                "QEffDynamicCache: no buffer for this layer; pass ctx_len=, or one (key, value) pair per layer"
            )
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = _zeros(key_states, self.cache_batch_size, self.ctx_len)
        self.values = _zeros(value_states, self.cache_batch_size, self.ctx_len)
        self.is_initialized = True

    def buffers(self) -> KeyValue:
        """The key and value buffers ``[B, Hkv, C, D]``.

        Raises:
            ValueError: nothing was written or wrapped yet.
        """
        if self.keys is None or self.values is None:
            raise ValueError("QEffDynamicCache: this layer has no buffers yet; nothing was written to it")
        return self.keys, self.values

    def write_only(self, key_states: Tensor, value_states: Tensor, cache_kwargs: CacheArguments | None) -> None:
        """Writes states ``[B, Hkv, S, D]`` to the slots that their positions name; pads are not written."""
        position_ids, batch_index = _addresses(cache_kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.buffers()
        _check_states(keys, values, key_states, value_states, position_ids, batch_index)
        if batch_index is None:
            self.keys = ctx_scatter(keys, position_ids, key_states)
            self.values = ctx_scatter(values, position_ids, value_states)
        else:
            self.keys = ctx_scatter_cb(keys, batch_index, position_ids, key_states)
            self.values = ctx_scatter_cb(values, batch_index, position_ids, value_states)

    def read_only(self, cache_kwargs: CacheArguments | None) -> KeyValue:
        """Reads ``[B, Hkv, L, D]``, ``L`` the compute context length or the buffer length.

        Slots after the row's largest position hold nothing of this row: their values are zero, their keys are those of
        slot 0 and must be hidden by the mask.
        """
        position_ids, batch_index = _addresses(cache_kwargs)
        keys, values = self.buffers()
        length, length_now = _read_length(keys, cache_kwargs)
        if values_are_known():
            _check_length(position_ids, length_now, keys.shape[2])
        indices, unused = self._reads.slots(position_ids, length, length_now)
        if batch_index is None:
            key, value = ctx_gather(keys, indices), ctx_gather(values, indices)
        else:
            key, value = ctx_gather_cb(keys, batch_index, indices), ctx_gather_cb(values, batch_index, indices)
        # Zeros, not whatever the slot holds: a hidden key weighs exactly 0, but 0 * NaN is NaN.
        return key, value.masked_fill(unused, 0.0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeyValue:
        """Writes, then reads; see :meth:`write_only`, :meth:`read_only` and :meth:`QEffDynamicCache.update`."""
        cache_kwargs = args[0] if args else kwargs.get("cache_kwargs")
        self.write_only(key_states, value_states, cache_kwargs)
        return self.read_only(cache_kwargs)

    def get_seq_length(self) -> int:
        """The buffer length, not the number of tokens seen: a mask is this wide."""
        if self.keys is not None:
            return self.keys.shape[-2]
        if self.ctx_len is not None:
            return self.ctx_len
        raise ValueError("QEffDynamicCache: the buffer length is not known; pass ctx_len=")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys: all slots, from slot 0."""
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        """The buffer length."""
        return self.get_seq_length()

    get_max_cache_shape = get_max_length  # what upstream's older releases call it


class QEffDynamicCache(Cache):  # type: ignore[misc]
    """Key and value buffers of all layers.

    ``QEffDynamicCache(ctx_len=N)`` allocates a layer at its first update; :meth:`from_legacy_cache` wraps existing
    buffers.

    Args:
        ctx_len: slots per row.
        cache_batch_size: rows of the buffers where it is not the states' batch (continuous batching).
    """

    def __init__(self, ctx_len: int | None = None, *, cache_batch_size: int | None = None) -> None:
        super().__init__(layers=[])
        self._reads = _Reads()
        self.ctx_len = ctx_len
        self.cache_batch_size = cache_batch_size

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any) -> "QEffDynamicCache":
        """Wraps ``((key, value), ...)``, one pair per layer, without copying; a ``QEffDynamicCache`` is returned as is.

        Args:
            past_key_values: buffers ``[B, Hkv, C, D]``.
        Raises:
            ValueError: None, no layer, or a layer that is not a pair of 4-D tensors.
            TypeError: anything else, other caches among it.
        """
        if isinstance(past_key_values, QEffDynamicCache):
            return past_key_values
        if past_key_values is None:
            raise ValueError(
                "past_key_values is required: one (key, value) buffer pair per layer, or a QEffDynamicCache"
            )
        if isinstance(past_key_values, (str, Tensor)) or not isinstance(past_key_values, Sequence):
            raise TypeError(
                "past_key_values must be a QEffDynamicCache or a sequence of (key, value) buffers, found "
                f"{type(past_key_values).__name__}"
            )
        if not past_key_values:
            raise ValueError("past_key_values is empty: one (key, value) buffer pair per layer is required")
        cache = cls()
        for index, pair in enumerate(past_key_values):
            if not isinstance(pair, Sequence) or len(pair) != 2:
                raise ValueError(f"past_key_values[{index}] must be a (key, value) pair")
            cache.layers.append(QEffDynamicLayer.from_buffers(pair[0], pair[1], cache._reads))
        return cache

    def to_legacy_cache(self) -> tuple[KeyValue, ...]:
        """``((key, value), ...)``, each ``[B, Hkv, C, D]``, without copying.

        Raises:
            ValueError: a layer was never written to.
        """
        return tuple(layer.buffers() for layer in self.layers)

    def __getitem__(self, layer_idx: int) -> KeyValue:
        layer: QEffDynamicLayer = self.layers[layer_idx]
        return layer.buffers()

    def __iter__(self) -> Iterator[KeyValue]:
        return iter(self.to_legacy_cache())

    def __len__(self) -> int:
        return len(self.layers)

    def _layer(self, layer_idx: int) -> QEffDynamicLayer:
        while len(self.layers) <= layer_idx:
            if self.ctx_len is None:
                raise ValueError(
                    f"past_key_values has buffers for {len(self.layers)} layers, but layer {layer_idx} wants to use it"
                )
            self.layers.append(QEffDynamicLayer(self.ctx_len, self.cache_batch_size, self._reads))
        return cast(QEffDynamicLayer, self.layers[layer_idx])

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> KeyValue:
        """Writes this call's states and returns what attention reads.

        Args:
            key_states: ``[B, Hkv, S, Dk]``.
            value_states: ``[B, Hkv, S, Dv]``.
            layer_idx: the layer.
            args, kwargs: ``cache_kwargs``, a mapping with ``position_ids`` (``[B, S]`` integers, -1 for a pad),
                ``batch_index`` (``[B, 1]`` integer buffer rows, or None) and ``CCL`` (None, the compute context length,
                or a tensor whose last dimension has that length).
        Returns:
            keys ``[B, Hkv, L, Dk]`` and values ``[B, Hkv, L, Dv]``; ``L`` is the compute context length or the buffer
            length.
        Raises:
            ValueError: no position ids, no buffer for the layer, or states that do not fit it.
            TypeError: the states' dtype is not the buffer's.
            IndexError: a position is not inside the buffer (outside an export).
        """
        return self._layer(layer_idx).update(key_states, value_states, *args, **kwargs)

    def write_only(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, cache_kwargs: CacheArguments | None = None
    ) -> None:
        """The writing half of :meth:`update`."""
        self._layer(layer_idx).write_only(key_states, value_states, cache_kwargs)

    def read_only(self, layer_idx: int, cache_kwargs: CacheArguments | None = None) -> KeyValue:
        """The reading half of :meth:`update`."""
        return self._layer(layer_idx).read_only(cache_kwargs)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The buffer length of a layer, not the number of tokens seen.

        Raises:
            ValueError: the cache has neither the layer nor a ``ctx_len``.
        """
        if layer_idx < len(self.layers):
            layer: QEffDynamicLayer = self.layers[layer_idx]
            return layer.get_seq_length()
        if self.ctx_len is None:
            raise ValueError("QEffDynamicCache: the buffer length is not known; pass ctx_len=")
        return self.ctx_len

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Length and offset of the keys: all slots, from slot 0."""
        return self.get_seq_length(layer_idx), 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """The buffer length, of the first layer where none is named: all have the same."""
        return self.get_seq_length(layer_idx or 0)

    get_max_cache_shape = get_max_length  # what upstream's older releases call it


def _zeros(states: Tensor, rows: int | None, slots: int) -> Tensor:
    batch, heads, _, head_dim = states.shape
    return states.new_zeros(batch if rows is None else rows, heads, slots, head_dim)


def _addresses(cache_kwargs: CacheArguments | None) -> tuple[Tensor, Tensor | None]:
    position_ids = None if cache_kwargs is None else cache_kwargs.get("position_ids")
    if position_ids is None:
        raise ValueError('QEffDynamicCache: cache_kwargs["position_ids"] [batch, seq_len] is required')
    assert cache_kwargs is not None
    return position_ids, cache_kwargs.get("batch_index")


def _read_length(keys: Tensor, cache_kwargs: CacheArguments | None) -> tuple[Any, int]:
    """``L``, a traced size while a graph is recorded, so that it serves any length; and ``L`` as a number."""
    limit = None if cache_kwargs is None else cache_kwargs.get("CCL")
    if limit is None:
        return keys.shape[2], static_size(keys, 2)
    if isinstance(limit, Tensor):
        return limit.shape[-1], static_size(limit, -1)
    return limit, int(limit)


def _slots_to_read(position_ids: Tensor, length: Any) -> tuple[Tensor, Tensor]:
    """Slots ``[B, 1, L]``, and which of them are after the row's largest position, ``[B, 1, L, 1]``."""
    slots = torch.arange(length, device=position_ids.device)[None, None, :]
    last = position_ids.amax(dim=1, keepdim=True).unsqueeze(1)
    unused = slots > last
    # Slot 0 stands for "nothing": a valid index for every runtime, hidden by the mask.
    return slots.masked_fill(unused, 0), unused.unsqueeze(-1)


def _check_length(position_ids: Tensor, length: int, slots: int) -> None:
    if length > slots:
        raise ValueError(f"QEffDynamicCache: compute context length {length} is more than the {slots} slots there are")
    last = int(position_ids.max())
    if last >= length:
        raise IndexError(f"QEffDynamicCache: position {last} is not below the compute context length {length}")


def _check_states(
    keys: Tensor,
    values: Tensor,
    key_states: Tensor,
    value_states: Tensor,
    position_ids: Tensor,
    batch_index: Tensor | None,
) -> None:
    for name, buffer, states in (("key", keys, key_states), ("value", values, value_states)):
        if buffer.dtype != states.dtype:
            raise TypeError(f"QEffDynamicCache: {name} buffer is {buffer.dtype}, the states are {states.dtype}")
    if not values_are_known():
        return
    for name, buffer, states in (("key", keys, key_states), ("value", values, value_states)):
        if (buffer.shape[1], buffer.shape[3]) != (states.shape[1], states.shape[3]):
            raise ValueError(
                f"QEffDynamicCache: {name} buffer {tuple(buffer.shape)} does not fit states {tuple(states.shape)}: "
                "heads and head dim must agree"
            )
        if batch_index is None and buffer.shape[0] != states.shape[0]:
            raise ValueError(
                f"QEffDynamicCache: {name} buffer has {buffer.shape[0]} rows, the states have {states.shape[0]}; with "
                "continuous batching pass batch_index"
            )
    if position_ids.shape != (key_states.shape[0], key_states.shape[2]):
        raise ValueError(
            f"QEffDynamicCache: position_ids {tuple(position_ids.shape)} does not fit states {tuple(key_states.shape)}"
        )
    if batch_index is not None and batch_index.numel() != key_states.shape[0]:
        raise ValueError(f"QEffDynamicCache: batch_index {tuple(batch_index.shape)} must have one entry per row")
    last = int(position_ids.max())
    if last >= keys.shape[2]:
        raise IndexError(f"QEffDynamicCache: position {last} is outside the buffer of {keys.shape[2]} slots")
