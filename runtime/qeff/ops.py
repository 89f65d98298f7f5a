"""Custom operators: what torch computes, and the ONNX operator that the exporter writes.

Outside an export these are plain functions of torch. During ``torch.onnx.export(dynamo=False)`` they become one node
each, of the domains and with the arguments that the accelerator's compiler expects, plus an ONNX local function whose
body (``onnx_functions.py``) lets any other runtime execute the model.

Domains and versions: ``com.qualcomm.cloud`` 1 for the cache operators, ``com.qti.aisw.onnx`` 1 for the norm.
"""

from typing import Any

import torch
from torch import Tensor

CLOUD_DOMAIN = "com.qualcomm.cloud"
NORM_DOMAIN = "com.qti.aisw.onnx"
OPSET_VERSION = 1


def _node(g: Any, name: str, *inputs: Any, **attributes: Any) -> Any:
    """Adds the operator ``name`` to the graph; its output's type is still to be set."""
    from torch.onnx._internal.torchscript_exporter._globals import GLOBALS

    from runtime.qeff.onnx_functions import functions

    return g.onnxscript_op(functions(GLOBALS.export_onnx_opset_version)[name], *inputs, **attributes)


def _cache_node(g: Any, name: str, data: Any, *inputs: Any) -> Any:
    """Adds a cache operator; of its output's sizes only the heads and the head dim are those of ``data``.

    The others are left open on purpose: a traced size would be folded into the graph as a constant, and the graph must
    serve every batch, sequence and context length.
    """
    value = _node(g, name, data, *inputs)
    sizes = data.type().varyingSizes()
    known = [None] * 4 if sizes is None else [None, sizes[1], None, sizes[3]]
    value.setType(data.type().with_sizes(known))
    return value


def _scatter(data: Tensor, rows: Tensor, position_ids: Tensor, updates: Tensor) -> Tensor:
    batch, token = torch.nonzero(position_ids >= 0, as_tuple=True)
    slots = position_ids[batch, token].to(torch.int64)
    # Advanced indices on both sides of a slice put the indexed dimension first: [N, H, D].
    written = data.clone()
    written[rows[batch], :, slots] = updates[batch, :, token]
    return written


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _CtxScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, data: Tensor, position_ids: Tensor, updates: Tensor) -> Tensor:
        rows = torch.arange(data.shape[0], device=data.device)
        return _scatter(data, rows, position_ids, updates)

    @staticmethod
    def symbolic(g: Any, data: Any, position_ids: Any, updates: Any) -> Any:
        return _cache_node(g, "CtxScatter", data, position_ids, updates)


class _CtxScatterCB(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, data: Tensor, batch_index: Tensor, position_ids: Tensor, updates: Tensor) -> Tensor:
        return _scatter(data, batch_index.reshape(-1).to(torch.int64), position_ids, updates)

    @staticmethod
    def symbolic(g: Any, data: Any, batch_index: Any, position_ids: Any, updates: Any) -> Any:
        return _cache_node(g, "CtxScatterCB", data, batch_index, position_ids, updates)


class _CtxGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, data: Tensor, ctx_indices: Tensor, comp_ctx_len: Tensor) -> Tensor:
        index = ctx_indices.to(torch.int64).expand(data.shape[0], data.shape[1], -1)
        return torch.gather(data, 2, index.unsqueeze(-1).expand(-1, -1, -1, data.shape[3]))

    @staticmethod
    def symbolic(g: Any, data: Any, ctx_indices: Any, comp_ctx_len: Any) -> Any:
        return _cache_node(g, "CtxGather", data, ctx_indices, comp_ctx_len)


class _CtxGatherCB(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, data: Tensor, batch_index: Tensor, ctx_indices: Tensor, comp_ctx_len: Tensor) -> Tensor:
        rows = batch_index.reshape(-1, 1, 1).to(torch.int64)
        heads = torch.arange(data.shape[1], device=data.device).view(1, -1, 1)
        return data[rows, heads, ctx_indices.to(torch.int64)]

    @staticmethod
    def symbolic(g: Any, data: Any, batch_index: Any, ctx_indices: Any, comp_ctx_len: Any) -> Any:
        return _cache_node(g, "CtxGatherCB", data, batch_index, ctx_indices, comp_ctx_len)


def _length(ctx_indices: Tensor) -> Tensor:
    """The compute context length as the int64 scalar that the gather operators take (traced while exporting)."""
    length: int | Tensor = ctx_indices.shape[-1]
    return length if isinstance(length, Tensor) else torch.tensor(length)


def ctx_scatter(data: Tensor, position_ids: Tensor, updates: Tensor) -> Tensor:
    """Returns ``data`` with ``updates`` written at ``position_ids``; a pad (position < 0) writes nothing.

    Args:
        data: ``[B, H, C, D]`` buffer, not changed.
        position_ids: ``[B, S]`` integer slots, -1 for a pad; the live ones of a row are distinct.
        updates: ``[B, H, S, D]`` of the dtype of ``data``.
    Returns:
        ``[B, H, C, D]``.
    Raises:
        IndexError: a position is not below ``C`` (outside an export).
    """
    if torch.onnx.is_in_onnx_export():
        return _apply(_CtxScatter, data, position_ids, updates)
    return _scatter(data, torch.arange(data.shape[0], device=data.device), position_ids, updates)


def ctx_scatter_cb(data: Tensor, batch_index: Tensor, position_ids: Tensor, updates: Tensor) -> Tensor:
    """:func:`ctx_scatter` for continuous batching: row ``b`` of the call is row ``batch_index[b, 0]`` of ``data``.

    Args:
        data: ``[F, H, C, D]`` buffer, not changed.
        batch_index: ``[B, 1]`` integer rows of ``data``.
        position_ids: ``[B, S]`` integer slots, -1 for a pad.
        updates: ``[B, H, S, D]`` of the dtype of ``data``.
    Returns:
        ``[F, H, C, D]``.
    Raises:
        IndexError: a position is not below ``C`` or a row not below ``F`` (outside an export).
    """
    if torch.onnx.is_in_onnx_export():
        return _apply(_CtxScatterCB, data, batch_index, position_ids, updates)
    return _scatter(data, batch_index.reshape(-1).to(torch.int64), position_ids, updates)


def ctx_gather(data: Tensor, ctx_indices: Tensor) -> Tensor:
    """Reads slots of each row.

    Args:
        data: ``[B, H, C, D]``.
        ctx_indices: ``[B, 1, L]`` integer slots, each in ``[0, C)``.
    Returns:
        ``[B, H, L, D]``.
    """
    if torch.onnx.is_in_onnx_export():
        return _apply(_CtxGather, data, ctx_indices, _length(ctx_indices))
    return _CtxGather.forward(None, data, ctx_indices, ctx_indices)


def ctx_gather_cb(data: Tensor, batch_index: Tensor, ctx_indices: Tensor) -> Tensor:
    """:func:`ctx_gather` for continuous batching: row ``b`` of the result comes from row ``batch_index[b, 0]``.

    Args:
        data: ``[F, H, C, D]``.
        batch_index: ``[B, 1]`` integer rows of ``data``.
        ctx_indices: ``[B, 1, L]`` integer slots, each in ``[0, C)``.
    Returns:
        ``[B, H, L, D]``.
    """
    if torch.onnx.is_in_onnx_export():
        return _apply(_CtxGatherCB, data, batch_index, ctx_indices, _length(ctx_indices))
    return _CtxGatherCB.forward(None, data, batch_index, ctx_indices, ctx_indices)


def _normalise(hidden_states: Tensor, epsilon: float) -> Tensor:
    hidden = hidden_states.to(torch.float32)
    return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return weight * _normalise(hidden_states, epsilon).to(hidden_states.dtype)

    @staticmethod
    def symbolic(g: Any, hidden_states: Any, weight: Any, epsilon: float) -> Any:
        if hidden_states.type().dtype() != weight.type().dtype():
            raise ValueError(
                "CustomRMSNorm: the hidden states and the weight must have one dtype to be exported, found "
                f"{hidden_states.type().dtype()} and {weight.type().dtype()}"
            )
        return _node(g, "CustomRMSNorm", hidden_states, weight, epsilon_f=epsilon).setTypeAs(hidden_states)


class _RMSNormCastLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return (weight.to(torch.float32) * _normalise(hidden_states, epsilon)).to(hidden_states.dtype)

    @staticmethod
    def symbolic(g: Any, hidden_states: Any, weight: Any, epsilon: float) -> Any:
        return _node(g, "CustomRMSNorm", hidden_states, weight, epsilon_f=epsilon).setTypeAs(hidden_states)


def rms_norm(hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm that rounds to the input's dtype before it multiplies by the weight (Llama's order).

    The exported operator has one body, which rounds once, after the weight; in float32 the two agree exactly.

    Args:
        hidden_states: ``[..., N]``.
        weight: ``[N]``.
        epsilon: added to the mean square.
    Returns:
        ``[..., N]`` of the dtype that ``weight * hidden_states`` has.
    Raises:
        ValueError: (export) the two dtypes differ, so the result would not have the input's dtype.
    """
    if torch.onnx.is_in_onnx_export():
        return _apply(_RMSNorm, hidden_states, weight, epsilon)
    return _RMSNorm.forward(None, hidden_states, weight, epsilon)


def rms_norm_cast_last(hidden_states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm wholly in float32, rounded to the input's dtype at the end (Gemma's and OLMo 2's order).

    Args:
        hidden_states: ``[..., N]``.
        weight: ``[N]``.
        epsilon: added to the mean square.
    Returns:
        ``[..., N]`` of the dtype of ``hidden_states``.
    """
    if torch.onnx.is_in_onnx_export():
        return _apply(_RMSNormCastLast, hidden_states, weight, epsilon)
    return _RMSNormCastLast.forward(None, hidden_states, weight, epsilon)
