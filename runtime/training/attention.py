"""Attention inside the segments of a packed row, with the signature of upstream's attention interface.

The mask decides what is attended to, as in upstream's eager and SDPA attention; the back end only how it is computed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from runtime.training.attention_backends import BACKENDS, AttentionCall, Backend, preferred_first
from runtime.training.masks import SegmentMask

# What a configured implementation prefers; torch's own kernels, then the others, for all that are not here.
PREFERENCES: dict[str, tuple[Backend, ...]] = {
    "eager": preferred_first(("plain",)),
    "flash_attention_2": preferred_first(("flash_attention_2", "flash_attention_3")),
    "flash_attention_3": preferred_first(("flash_attention_3", "flash_attention_2")),
    "flash_attention_4": preferred_first(("flash_attention_3", "flash_attention_2")),
}

# Upstream's implementations that know no window but the mask's.
MASK_ONLY = ("eager", "sdpa")

# Keywords of upstream's attention functions that would change the result and that no back end computes.
UNSUPPORTED_KEYWORDS = ("position_bias", "head_mask", "indices", "alibi")

_chosen: ContextVar[Backend | None] = ContextVar("runtime.training.attention.backend", default=None)


def attention_for(mask: Any, implementation: str | None, eager: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function for a mask.

    Args:
        mask: what the layer was given as ``attention_mask``.
        implementation: ``config._attn_implementation``.
        eager: upstream's eager attention function of the modeling file.
    Returns:
        :func:`segment_attention` for a :class:`SegmentMask`, else what upstream would call.
    """
    if isinstance(mask, SegmentMask):
        return partial(segment_attention, implementation=implementation)
    function: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    return function


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Computes packed attention by this back end and no other: one that cannot is an error.

    Args:
        name: ``varlen``, ``flash_attention_2``, ``flash_attention_3``, ``sdpa`` or ``plain``.
    Raises:
        ValueError: there is no such back end.
    """
    by_name = {backend.name: backend for backend in BACKENDS}
    if name not in by_name:
        raise ValueError(f"use_backend: {name!r} is not one of {', '.join(by_name)}")
    token = _chosen.set(by_name[name])
    try:
        yield
    finally:
        _chosen.reset(token)


def backend_for(call: AttentionCall, implementation: str | None = None) -> Backend:
    """The first back end that can compute a call.

    Raises:
        NotImplementedError: none can; the message has the reason of each.
    """
    chosen = _chosen.get()
    candidates = (chosen,) if chosen is not None else PREFERENCES.get(implementation or "", BACKENDS)
    reasons = []
    for backend in candidates:
        reason = backend.supports(call)
        if reason is None:
            return backend
        reasons.append(f"{backend.name}: {reason}")
    raise NotImplementedError("packed attention: no back end can compute this call; " + "; ".join(reasons))


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: SegmentMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    *,
    implementation: str | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside the segments of a packed row.

    Args:
        module: the attention module; its training mode is read.
        query: ``[1, Hq, T, D]``, or this rank's share of the tokens.
        key: ``[1, Hkv, T, D]``.
        value: ``[1, Hkv, T, Dv]``.
        attention_mask: which keys a query attends to.
        scaling: factor of the scores, ``D ** -0.5`` if None.
        dropout: applied to the weights in training mode.
        sliding_window: must agree with the mask, unless the implementation is one that reads the mask alone.
        softcap: soft-cap of the scores.
        s_aux: ``[Hq]`` sinks.
        is_causal: must not be False.
        implementation: ``config._attn_implementation``; which back ends are tried first.
        kwargs: not used, as upstream, but for what would change the result.
    Returns:
        ``[1, T, Hq, Dv]``, and no weights.
    Raises:
        ValueError: arguments that contradict the mask, and a wish for weights.
        NotImplementedError: nothing can compute the call.
    """
    _check_arguments(attention_mask, sliding_window, is_causal, implementation, kwargs)
    packing = attention_mask.packing
    if packing.group is not None:
        states = packing.group.all_tokens(query, key, value)
        query, key, value = (part.narrow(2, 0, packing.total) for part in states)  # without what fills the row up
        s_aux = None if s_aux is None else packing.group.own_heads(s_aux)
    call = AttentionCall(
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=dropout if module.training else 0.0,
        softcap=softcap,
        sinks=s_aux,
    )
    _check_shapes(call)
    output = backend_for(call, implementation)(call)
    if packing.group is not None:
        output = functional.pad(output, (0, 0, 0, 0, 0, packing.group.padding(packing.total)))
        output = packing.group.all_heads(output)
    return output, None


def _check_arguments(
    mask: SegmentMask,
    sliding_window: int | None,
    is_causal: bool | None,
    implementation: str | None,
    kwargs: dict[str, Any],
) -> None:
    if sliding_window is not None and sliding_window != mask.window and implementation not in MASK_ONLY:
        raise ValueError(
            f"packed attention: the layer's sliding_window is {sliding_window}, its mask's window {mask.window}; "
            f"upstream's {implementation} reads the first and its {' and '.join(MASK_ONLY)} the second"
        )
    if is_causal is False:
        raise ValueError("packed attention is causal, the layer asks for is_causal=False")
    if kwargs.get("output_attentions"):
        raise ValueError("packed attention has no weights to return, output_attentions is not supported")
    for name in UNSUPPORTED_KEYWORDS:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"packed attention: {name} is not supported")


def _check_shapes(call: AttentionCall) -> None:
    """Raises ValueError for tensors that a kernel would silently misread."""
    if call.mask.window == 0 or call.mask.chunk == 0:
        raise ValueError(f"packed attention: {call.mask} lets no query attend to any key")
    total = call.mask.packing.total
    query_heads, key_heads = call.query.shape[1], call.key.shape[1]
    rows = {(states.shape[0], states.shape[2]) for states in (call.query, call.key, call.value)}
    if rows != {(1, total)}:
        raise ValueError(
            f"packed attention: queries, keys and values must be [1, heads, {total}, head_dim], found "
            f"{list(call.query.shape)}, {list(call.key.shape)}, {list(call.value.shape)}"
        )
    if call.value.shape[1] != key_heads or query_heads % key_heads:
        raise ValueError(
            f"packed attention: {query_heads} query heads cannot share {key_heads} key and {call.value.shape[1]} "
            "value heads"
        )
