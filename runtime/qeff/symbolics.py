"""Operators that the TorchScript exporter lacks, or lowers in a way that fixes sizes, as plain ONNX.

They are registered for the duration of one export only: a symbolic is global to the process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.onnx import symbolic_helper


def expm1(g: Any, self: Any) -> Any:
    """``exp(x) - 1``, elementwise."""
    one = g.op("CastLike", g.op("Constant", value_t=torch.tensor(1.0)), self)
    return g.op("Sub", g.op("Exp", self), one)


def repeat_interleave(g: Any, self: Any, repeats: Any, dim: Any = None, output_size: Any = None) -> Any:
    """Each element ``repeats`` times along ``dim``, for constant ``repeats`` and ``dim``; other sizes stay dynamic.

    Raises:
        SymbolicValueError: ``repeats`` is a tensor that is not constant, or there is no ``dim``.
    """
    count = symbolic_helper._maybe_get_const(repeats, "i")
    axis = symbolic_helper._maybe_get_const(dim, "i")
    rank = symbolic_helper._get_tensor_rank(self)
    if isinstance(count, torch.Tensor) and count.numel() == 1:
        count = int(count)
    if not isinstance(count, int) or not isinstance(axis, int) or rank is None:
        raise torch.onnx.errors.SymbolicValueError("repeat_interleave needs constant repeats and dim", self)
    axis %= rank

    def vector(values: list[int]) -> Any:
        return g.op("Constant", value_t=torch.tensor(values, dtype=torch.int64))

    tiled = g.op(
        "Tile",
        g.op("Unsqueeze", self, vector([axis + 1])),
        vector([1] * (axis + 1) + [count] + [1] * (rank - axis - 1)),
    )
    shape = g.op("Shape", self)
    before = g.op("Slice", shape, vector([0]), vector([axis]), vector([0]))
    after = g.op("Slice", shape, vector([axis + 1]), vector([rank]), vector([0]))
    result = g.op("Reshape", tiled, g.op("Concat", before, vector([-1]), after, axis_i=0))
    sizes = symbolic_helper._get_tensor_sizes(self)
    if sizes is not None:  # the tracer's own shape inference gives up at a computed shape
        known = [None if size is None else size * count if i == axis else size for i, size in enumerate(sizes)]
        result.setType(self.type().with_sizes(known))
    return result


def rms_norm(g: Any, input: Any, normalized_shape: Any, weight: Any = None, eps: Any = None) -> Any:
    """``torch.nn.functional.rms_norm`` over the last dimension, in the input's dtype as torch computes it.

    Raises:
        SymbolicValueError: the norm spans more than one dimension.
    """
    shape = _constant(normalized_shape, "is", "normalized_shape")
    if len(shape) != 1:
        raise torch.onnx.errors.SymbolicValueError("rms_norm over one dimension only", input)
    epsilon = None if symbolic_helper._is_none(eps) else _constant(eps, "f", "eps")
    if epsilon is None:
        epsilon = torch.finfo(torch.float32).eps
    axes = g.op("Constant", value_t=torch.tensor([-1], dtype=torch.int64))
    wide = g.op("Cast", input, to_i=1)
    mean = g.op("ReduceMean", g.op("Mul", wide, wide), axes, keepdims_i=1)
    root = g.op("Sqrt", g.op("Add", mean, g.op("Constant", value_t=torch.tensor(float(epsilon)))))
    normed = g.op("CastLike", g.op("Div", wide, root), input)
    return normed if symbolic_helper._is_none(weight) else g.op("Mul", normed, weight)


SYMBOLICS: dict[str, Callable[..., Any]] = {
    "aten::expm1": expm1,
    "aten::repeat_interleave": repeat_interleave,
    "aten::rms_norm": rms_norm,
}


def _constant(value: Any, kind: str, name: str) -> Any:
    return symbolic_helper._get_const(value, kind, name)  # type: ignore[no-untyped-call]


@contextmanager
def registered(opset: int) -> Iterator[None]:
    """The symbolics for exports of one opset, taken back at the end."""
    exporter: Any = torch.onnx
    done: list[str] = []
    try:
        for name, symbolic in SYMBOLICS.items():
            exporter.register_custom_op_symbolic(name, symbolic, opset)
            done.append(name)
        yield
    finally:
        for name in done:
            exporter.unregister_custom_op_symbolic(name, opset)
