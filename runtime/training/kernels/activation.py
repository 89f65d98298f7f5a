"""Gated activations, ``act(gate) * up``, as one kernel each way."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from transformers import activations

from runtime.training import kernels
from runtime.training.features import active
from runtime.training.kernels.ownership import writable

SILU = (nn.SiLU, activations.SiLUActivation)
TANH_GELU = (
    activations.GELUTanh,
    activations.NewGELUActivation,
    activations.FastGELUActivation,
    activations.AccurateGELUActivation,
)


def gated(module: nn.Module, act: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """``act(gate) * up``: by kernel when the feature ``swiglu`` is on and `act` is one that has a kernel.

    Which one `act` is is decided by the object itself, since a configuration chooses it: SiLU has one and the tanh
    approximation of GELU has one; the exact (erf) GELU and all others have none and stay upstream's.

    Args:
        module: the MLP, whose features decide.
        act: upstream's activation, module or function.
        gate, up: ``[..., I]``.

    Raises:
        RuntimeError: kernels are compiled for a CUDA device and the tensors are on the CPU.
    """
    if not active(module, "swiglu"):
        return act(gate) * up
    function = _function(act)
    if function is None:
        kernels.not_used(
            "swiglu", type(module).__name__, f"{getattr(act, '__name__', type(act).__name__)} has no kernel"
        )
    if function is None or not _fit(gate, up):
        return act(gate) * up
    if function is _SiLUMul and _are_halves(gate, up):
        function = _SiLUMulOfHalves
    return cast(Tensor, function.apply(gate, up))  # type: ignore[no-untyped-call]


def is_silu(act: object) -> bool:
    """Whether `act` is SiLU (swish)."""
    return type(act) in SILU or act is F.silu


def is_tanh_gelu(act: object) -> bool:
    """Whether `act` is the tanh approximation of GELU."""
    if type(act) in TANH_GELU:
        return True
    if isinstance(act, functools.partial):
        return act.func is F.gelu and not act.args and act.keywords == {"approximate": "tanh"}
    return type(act) is nn.GELU and act.approximate == "tanh"


def _function(act: object) -> type[Function] | None:
    return _SiLUMul if is_silu(act) else _GELUMul if is_tanh_gelu(act) else None


def _fit(gate: Tensor, up: Tensor) -> bool:
    same = gate.shape == up.shape and gate.dtype == up.dtype
    return same and gate.shape[-1] <= kernels.WIDEST_ROW and kernels.takes(gate, up)


class _SiLUMul(Function):
    """Liger's SwiGLU with a backward that writes only over memory that nothing else can read.

    Liger's own writes the gradients over gate and up whatever they are. Autograd does not see that: a second backward
    (``retain_graph``), or an operation that saved either as its result, would go on with gradients for activations.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import swiglu_forward

        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        result: Tensor = swiglu_forward(gate, up)[-1]
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops.swiglu import swiglu_backward

        d_gate, d_up = swiglu_backward(*writable(ctx.saved_tensors, "saved"), grads[0].contiguous())
        return d_gate, d_up


class _SiLUMulOfHalves(Function):
    """Liger's SwiGLU of one product whose first half is the gate: both halves are read where they are."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import swiglu_fused_gate_up_forward

        ctx.save_for_backward(gate, up)
        result: Tensor = swiglu_fused_gate_up_forward(_whole(gate))[-1]
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops.swiglu import swiglu_fused_gate_up_backward

        gate, _ = ctx.saved_tensors
        gradient = swiglu_fused_gate_up_backward(_whole(gate), grads[0].contiguous())
        d_gate, d_up = gradient.view(*gate.shape[:-1], -1).chunk(2, dim=-1)
        return d_gate, d_up


class _GELUMul(Function):
    """Liger's GeGLU (tanh), as `_SiLUMul`."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from liger_kernel.ops.geglu import geglu_forward

        gate, up = gate.contiguous(), up.contiguous()
        ctx.save_for_backward(gate, up)
        result: Tensor = geglu_forward(gate, up)[-1]
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops.geglu import geglu_backward

        d_gate, d_up = geglu_backward(*writable(ctx.saved_tensors, "saved"), grads[0].contiguous())
        return d_gate, d_up


def _are_halves(gate: Tensor, up: Tensor) -> bool:
    """Whether gate and up are, in this order, the halves of the rows of one contiguous tensor."""
    width = gate.shape[-1]
    rows = _row_strides(gate.shape, 2 * width)
    return (
        gate.untyped_storage().data_ptr() == up.untyped_storage().data_ptr()
        and up.storage_offset() == gate.storage_offset() + width
        and gate.stride() == up.stride() == rows
    )


def _row_strides(shape: Sequence[int], row: int) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, row if len(strides) == 1 else strides[0] * size)
    return tuple(strides)


def _whole(gate: Tensor) -> Tensor:
    """The tensor ``[..., 2I]`` that `gate` is the first half of."""
    return gate.as_strided((*gate.shape[:-1], 2 * gate.shape[-1]), gate.stride(), gate.storage_offset())
