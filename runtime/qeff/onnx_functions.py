"""The bodies of the custom operators as ONNX local functions, for one default opset at a time.

An accelerator's compiler recognises the operators by domain and name and brings its own kernels; any other runtime
(ONNX Runtime) executes the bodies below, which are plain ONNX. Importing this module imports onnxscript, so only the
exporter's symbolic functions do it.

``B`` rows in this call, ``F`` rows in the buffer, ``H`` KV heads, ``S`` tokens in this call, ``C`` slots, ``D`` head
dim.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

from onnxscript import opset17, opset18, script
from onnxscript.values import Opset

from runtime.qeff.ops import CLOUD_DOMAIN, NORM_DOMAIN, OPSET_VERSION

_FLOAT = 1  # TensorProto.FLOAT
_INT32 = 6  # TensorProto.INT32; ArgMax over int64 is not implemented by every runtime
_INT64 = 7  # TensorProto.INT64

_DEFAULT_OPSETS = {17: opset17, 18: opset18}


def supported_opsets() -> tuple[int, ...]:
    """The default-domain opset versions that the bodies exist for."""
    return tuple(sorted(_DEFAULT_OPSETS))


@cache
def functions(opset_version: int) -> Mapping[str, Any]:
    """Operator name -> onnxscript function whose body uses the given default-domain opset.

    Raises:
        ValueError: there are no bodies for this opset.
    """
    if opset_version not in _DEFAULT_OPSETS:
        raise ValueError(
            f"the custom operators have no body for ONNX opset {opset_version}; export with one of {supported_opsets()}"
        )
    op = _DEFAULT_OPSETS[opset_version]
    cloud = Opset(CLOUD_DOMAIN, OPSET_VERSION)
    norm = Opset(NORM_DOMAIN, OPSET_VERSION)

    # A pad (position < 0) must leave the buffer as it is, but ScatterND has to write something for every update. So a
    # pad repeats the write of the call's furthest token: same place, same values, whatever the order of the writes.
    # If the whole call is pads, that token is itself a pad, and slot 0 of its row is written with what it already
    # holds.
    # Of the data only the number of heads is asked for, a static size: the rest comes from the positions, so that a
    # runtime's common subexpression elimination computes the indices once for all layers.

    @script(cloud, default_opset=op)
    def CtxScatter(data, position_ids, updates):  # type: ignore[no-untyped-def]
        zero = op.Constant(value_ints=[0])
        one = op.Constant(value_ints=[1])
        two = op.Constant(value_ints=[2])
        three = op.Constant(value_ints=[3])
        flat = op.Constant(value_ints=[-1])
        scalar_zero = op.Constant(value_int=0)
        scalar_one = op.Constant(value_int=1)

        position = op.Cast(position_ids, to=_INT64)
        batch = op.Shape(position, start=0, end=1)
        seq = op.Shape(position, start=1, end=2)
        heads = op.Shape(data, start=1, end=2)
        live = op.GreaterOrEqual(position, zero)
        rows = op.Unsqueeze(op.Range(scalar_zero, op.Squeeze(batch), scalar_one), one)

        furthest = op.ArgMax(op.Cast(op.Reshape(position, flat), to=_INT32), axis=0, keepdims=1)
        furthest_row = op.Div(furthest, seq)
        furthest_token = op.Sub(furthest, op.Mul(furthest_row, seq))
        furthest_position = op.Gather(op.Reshape(position, flat), furthest, axis=0)
        furthest_slot = op.Max(furthest_position, zero)
        new_there = op.Gather(op.Gather(updates, furthest_row, axis=0), furthest_token, axis=2)
        old_there = op.Gather(op.Slice(data, zero, one, two), furthest_row, axis=0)
        repeated = op.Where(op.GreaterOrEqual(furthest_position, zero), new_there, old_there)

        row = op.Where(live, rows, furthest_row)
        slot = op.Where(live, position, furthest_slot)
        value = op.Where(op.Unsqueeze(live, op.Constant(value_ints=[1, 3])), updates, repeated)

        grid = op.Concat(batch, heads, seq, one, axis=0)
        head = op.Unsqueeze(op.Range(scalar_zero, op.Squeeze(heads), scalar_one), op.Concat(zero, two, three, axis=0))
        indices = op.Concat(
            op.Expand(op.Unsqueeze(row, op.Concat(one, three, axis=0)), grid),
            op.Expand(head, grid),
            op.Expand(op.Unsqueeze(slot, op.Concat(one, three, axis=0)), grid),
            axis=-1,
        )
        return op.ScatterND(data, indices, value)

    @script(cloud, default_opset=op)
    def CtxScatterCB(data, batch_index, position_ids, updates):  # type: ignore[no-untyped-def]
        zero = op.Constant(value_ints=[0])
        one = op.Constant(value_ints=[1])
        two = op.Constant(value_ints=[2])
        three = op.Constant(value_ints=[3])
        flat = op.Constant(value_ints=[-1])
        scalar_zero = op.Constant(value_int=0)
        scalar_one = op.Constant(value_int=1)

        position = op.Cast(position_ids, to=_INT64)
        batch = op.Shape(position, start=0, end=1)
        seq = op.Shape(position, start=1, end=2)
        heads = op.Shape(data, start=1, end=2)
        live = op.GreaterOrEqual(position, zero)
        rows = op.Cast(batch_index, to=_INT64)

        furthest = op.ArgMax(op.Cast(op.Reshape(position, flat), to=_INT32), axis=0, keepdims=1)
        furthest_row = op.Div(furthest, seq)
        furthest_token = op.Sub(furthest, op.Mul(furthest_row, seq))
        furthest_position = op.Gather(op.Reshape(position, flat), furthest, axis=0)
        furthest_slot = op.Max(furthest_position, zero)
        furthest_buffer_row = op.Gather(op.Reshape(rows, flat), furthest_row, axis=0)
        new_there = op.Gather(op.Gather(updates, furthest_row, axis=0), furthest_token, axis=2)
        old_there = op.Gather(op.Slice(data, zero, one, two), furthest_buffer_row, axis=0)
        repeated = op.Where(op.GreaterOrEqual(furthest_position, zero), new_there, old_there)

        row = op.Where(live, rows, furthest_buffer_row)
        slot = op.Where(live, position, furthest_slot)
        value = op.Where(op.Unsqueeze(live, op.Constant(value_ints=[1, 3])), updates, repeated)

        grid = op.Concat(batch, heads, seq, one, axis=0)
        head = op.Unsqueeze(op.Range(scalar_zero, op.Squeeze(heads), scalar_one), op.Concat(zero, two, three, axis=0))
        indices = op.Concat(
            op.Expand(op.Unsqueeze(row, op.Concat(one, three, axis=0)), grid),
            op.Expand(head, grid),
            op.Expand(op.Unsqueeze(slot, op.Concat(one, three, axis=0)), grid),
            axis=-1,
        )
        return op.ScatterND(data, indices, value)

    @script(cloud, default_opset=op)
    def CtxGather(data, ctx_indices, comp_ctx_len):  # type: ignore[no-untyped-def]
        length = op.Reshape(op.Cast(comp_ctx_len, to=_INT64), op.Constant(value_ints=[1]))
        grid = op.Concat(op.Shape(ctx_indices, start=0, end=1), op.Shape(data, start=1, end=2), length, axis=0)
        indices = op.Expand(op.Cast(ctx_indices, to=_INT64), grid)
        return op.GatherND(data, op.Unsqueeze(indices, op.Constant(value_ints=[-1])), batch_dims=2)

    @script(cloud, default_opset=op)
    def CtxGatherCB(data, batch_index, ctx_indices, comp_ctx_len):  # type: ignore[no-untyped-def]
        # The length is that of `ctx_indices`; `comp_ctx_len` is part of the operator's signature only.
        one = op.Constant(value_ints=[1])
        indices = op.Cast(ctx_indices, to=_INT64)
        batch = op.Shape(batch_index, start=0, end=1)
        heads = op.Shape(data, start=1, end=2)
        grid = op.Concat(batch, heads, op.Shape(indices, start=2, end=3), one, axis=0)
        row = op.Unsqueeze(op.Cast(batch_index, to=_INT64), op.Constant(value_ints=[2, 3]))
        head = op.Unsqueeze(
            op.Range(op.Constant(value_int=0), op.Squeeze(heads), op.Constant(value_int=1)),
            op.Constant(value_ints=[0, 2, 3]),
        )
        where = op.Concat(
            op.Expand(row, grid),
            op.Expand(head, grid),
            op.Expand(op.Unsqueeze(indices, op.Constant(value_ints=[3])), grid),
            axis=-1,
        )
        return op.GatherND(data, where)

    return {
        "CtxScatter": CtxScatter,
        "CtxScatterCB": CtxScatterCB,
        "CtxGather": CtxGather,
        "CtxGatherCB": CtxGatherCB,
        "CustomRMSNorm": _rms_norm(opset_version, norm),
    }


def _rms_norm(opset_version: int, norm: Any) -> Any:
    """The norm's body; ReduceMean takes its axes as an attribute before opset 18 and as an input from then on."""
    if opset_version < 18:
        op = opset17

        @script(norm, default_opset=op)  # type: ignore[untyped-decorator]
        def CustomRMSNorm(hidden_states, weight, epsilon: float):  # type: ignore[no-untyped-def]
            hidden = op.Cast(hidden_states, to=_FLOAT)
            square = op.Pow(hidden, op.Constant(value_float=2.0))
            mean = op.ReduceMean(square, axes=[-1], keepdims=1)
            root = op.Sqrt(op.Add(mean, epsilon))
            normed = op.Mul(hidden, op.Reciprocal(root))
            return op.CastLike(op.Mul(normed, op.Cast(weight, to=_FLOAT)), hidden_states)

        return CustomRMSNorm
    op = opset18

    @script(norm, default_opset=op)  # type: ignore[no-redef,untyped-decorator]
    def CustomRMSNorm(hidden_states, weight, epsilon: float):  # type: ignore[no-untyped-def]
        hidden = op.Cast(hidden_states, to=_FLOAT)
        square = op.Pow(hidden, op.Constant(value_float=2.0))
        mean = op.ReduceMean(square, op.Constant(value_ints=[-1]), keepdims=1)
        root = op.Sqrt(op.Add(mean, epsilon))
        normed = op.Mul(hidden, op.Reciprocal(root))
        return op.CastLike(op.Mul(normed, op.Cast(weight, to=_FLOAT)), hidden_states)

    return CustomRMSNorm
