"""RMS norms that export as one ``CustomRMSNorm`` operator.

Each class is swapped in for an upstream norm of the same arithmetic (``module.__class__ = ...``), so it has no state of
its own: ``weight`` and the epsilon are the upstream module's.
"""

import torch
from torch import Tensor, nn

from runtime.qeff.ops import rms_norm, rms_norm_cast_last
from runtime.qeff.tracing import static_size


def _epsilon(module: nn.Module) -> float:
    """The epsilon under either of upstream's two names."""
    for name in ("variance_epsilon", "eps"):
        value = getattr(module, name, None)
        if value is not None:
            return float(value)
    raise AttributeError(f"{type(module).__name__} has neither variance_epsilon nor eps")


class CustomRMSNormAIC(nn.Module):
    """Normalises in float32, rounds, then multiplies by the weight (``LlamaRMSNorm``).

    Args:
        hidden_size: ``N``.
        eps: added to the mean square.
    """

    weight: Tensor

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., N]`` -> ``[..., N]``."""
        return rms_norm(hidden_states, self.weight, _epsilon(self))


class GemmaCustomRMSNormAIC(CustomRMSNormAIC):
    """Normalises in float32 and multiplies by ``1 + weight`` before rounding (``GemmaRMSNorm``)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., N]`` -> ``[..., N]``."""
        return rms_norm_cast_last(hidden_states, 1.0 + self.weight.to(torch.float32), _epsilon(self))


class CastLastRMSNormAIC(CustomRMSNormAIC):
    """Normalises in float32 and multiplies by ``weight`` before rounding (``Olmo2RMSNorm``)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., N]`` -> ``[..., N]``."""
        return rms_norm_cast_last(hidden_states, self.weight, _epsilon(self))


class UnitRMSNormAIC(CustomRMSNormAIC):
    """Normalises in float32 and rounds; there is no weight (``NanoChatRMSNorm``)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """``[..., N]`` -> ``[..., N]``."""
        ones = torch.ones(static_size(hidden_states, -1), dtype=torch.float32, device=hidden_states.device)
        return rms_norm_cast_last(hidden_states, ones, _epsilon(self))
