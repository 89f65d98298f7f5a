"""Root-mean-square norms as one kernel each way.

Each class is swapped in for an upstream norm of the same arithmetic (``module.__class__ = ...``), so it has no state of
its own: ``weight`` and the epsilon are the upstream module's. Which class it is is a fact that the compiler reads from
upstream's forward: where the cast back to the input's dtype stands and whether the weight is used as ``1 + weight``.
Where the kernel does not fit the tensors, the same arithmetic runs as upstream writes it.

The backward never writes over the gradient that it is given (Liger's ``in_place``): that gradient may also flow into a
residual beside the norm.
"""

from typing import Any

import torch
from torch import Tensor, nn

from runtime.training import kernels
from runtime.training.features import active


class _LigerNorm(nn.Module):
    """Liger's RMS norm under one casting mode and weight offset."""

    weight: Tensor
    casting: str
    offset: float = 0.0

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., N]`` -> ``[..., N]``, in the dtype that upstream gives.

        Raises:
            RuntimeError: kernels are compiled for a CUDA device and ``hidden_states`` is on the CPU.
        """
        weight = self._weight()
        if not active(self, "rms_norm") or not self._fits(hidden_states, weight):
            return self._upstream(hidden_states, epsilon(self))
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        result: Tensor = LigerRMSNormFunction.apply(
            hidden_states, weight, epsilon(self), self.offset, self.casting, False, None
        )
        return result

    def _weight(self) -> Tensor | None:
        return self.weight

    def _fits(self, hidden_states: Tensor, weight: Tensor | None) -> bool:
        if hidden_states.ndim == 0 or hidden_states.shape[-1] > kernels.WIDEST_ROW:
            return False
        if weight is None:
            return kernels.takes(hidden_states)
        return weight.shape == hidden_states.shape[-1:] and kernels.takes(hidden_states, weight)

    def _upstream(self, hidden_states: Tensor, eps: float) -> Tensor:
        raise NotImplementedError


class LigerNormCastThenWeight(_LigerNorm):
    """Normalises in float32, casts back, then multiplies by the weight (``LlamaRMSNorm``)."""

    casting = "llama"

    def _fits(self, hidden_states: Tensor, weight: Tensor | None) -> bool:
        # A float32 weight on bfloat16 states makes upstream's result float32; the kernel's stays bfloat16.
        if weight is None or weight.dtype != hidden_states.dtype:
            kernels.not_used("rms_norm", type(self).__name__, "its weight is of another dtype than the states")
            return False
        return super()._fits(hidden_states, weight)

    def _upstream(self, hidden_states: Tensor, eps: float) -> Tensor:
        return self.weight * _normalised(hidden_states, eps).to(hidden_states.dtype)


class LigerNormOnePlusWeight(_LigerNorm):
    """Normalises in float32, multiplies by ``1 + weight`` there, then casts back (``GemmaRMSNorm``)."""

    casting = "gemma"
    offset = 1.0

    def _upstream(self, hidden_states: Tensor, eps: float) -> Tensor:
        return (_normalised(hidden_states, eps) * (1.0 + self.weight.float())).to(hidden_states.dtype)


class LigerNormWeightThenCast(_LigerNorm):
    """Normalises in float32, multiplies by the weight there, then casts back (``Olmo2RMSNorm``)."""

    casting = "gemma"

    def _upstream(self, hidden_states: Tensor, eps: float) -> Tensor:
        return (self.weight * _normalised(hidden_states, eps)).to(hidden_states.dtype)


class LigerNormNoWeight(_LigerNorm):
    """Normalises in float32 and casts back; there is no weight (``Llama4TextL2Norm``)."""

    casting = "gemma"

    def _weight(self) -> Tensor | None:
        return None

    def _upstream(self, hidden_states: Tensor, eps: float) -> Tensor:
        return _normalised(hidden_states, eps).to(hidden_states.dtype)


def epsilon(module: nn.Module) -> float:
    """The epsilon under either of upstream's two names."""
    for name in ("variance_epsilon", "eps"):
        value: Any = getattr(module, name, None)
        if value is not None:
            return float(value)
    raise AttributeError(f"{type(module).__name__} has neither variance_epsilon nor eps")


def _normalised(hidden_states: Tensor, eps: float) -> Tensor:
    x = hidden_states.to(torch.float32)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
