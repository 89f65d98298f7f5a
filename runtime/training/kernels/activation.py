"""Gated activations, ``act(gate) * up``, as one kernel each way."""

import functools
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from transformers import activations

from runtime.training import kernels
from runtime.training.features import active

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
    function = _function(act) if active(module, "swiglu") else None
    if function is None or not _fit(gate, up):
        return act(gate) * up
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


def _function(act: object) -> "type[_SiLUMul] | type[_GELUMul] | None":
    return _SiLUMul if is_silu(act) else _GELUMul if is_tanh_gelu(act) else None


def _fit(gate: Tensor, up: Tensor) -> bool:
    same = gate.shape == up.shape and gate.dtype == up.dtype
    return same and gate.shape[-1] <= kernels.WIDEST_ROW and kernels.takes(gate, up)


class _SiLUMul(Function):
    """Liger's SwiGLU with a backward that writes into buffers of its own.

    Liger's own writes the gradients over the saved gate and up. Autograd does not see that: a second backward
    (``retain_graph``), or an operation that saved either as its output, would go on with gradients for activations.
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

        gate, up = ctx.saved_tensors
        d_gate, d_up = swiglu_backward(gate.clone(), up.clone(), grads[0].contiguous())
        return d_gate, d_up


class _GELUMul(Function):
    """Liger's GeGLU (tanh) with a backward that writes into buffers of its own, as `_SiLUMul`."""

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

        gate, up = ctx.saved_tensors
        d_gate, d_up = geglu_backward(gate.clone(), up.clone(), grads[0].contiguous())
        return d_gate, d_up
