"""Experts with stacked weights as grouped matrix products."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _default_apply_gate

from runtime.training import kernels
from runtime.training.features import active
from runtime.training.kernels.activation import is_silu

Experts = Callable[[Tensor, Tensor, Tensor], Tensor]


def experts(module: nn.Module, function: Experts) -> Experts:
    """`function`, or Liger's fused experts in its place when the feature ``experts`` is on and the weights fit.

    Args:
        module: an experts module of upstream's: ``gate_up_proj [E, 2I, H]``, ``down_proj [E, H, I]``.
        function: upstream's forward, ``(hidden_states [T, H], top_k_index [T, K], top_k_weights [T, K]) -> [T, H]``.

    Returns:
        A function of the same signature, which calls `function` for tensors that do not fit.
    """
    if not active(module, "experts"):
        return function
    reason = mismatch(module)
    if reason is not None:
        kernels.not_used("experts", type(module).__name__, reason)
        return function
    up, down = cast(Tensor, module.gate_up_proj), cast(Tensor, module.down_proj)

    def fused(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        if not _fit(up, down, hidden_states, top_k_index, top_k_weights):
            return function(hidden_states, top_k_index, top_k_weights)
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        # An index past the last expert means "not one of ours" to upstream (expert parallelism): it adds nothing.
        ours = top_k_index < up.shape[0]
        index = torch.where(ours, top_k_index, 0).to(torch.int32)
        weights = torch.where(ours, top_k_weights, 0)
        result: Tensor = LigerFusedMoEFunction.apply(hidden_states, up, down, index, weights)
        return result

    return fused


def mismatch(module: nn.Module) -> str | None:
    """Why the kernel cannot stand for this experts module, or None: what does not depend on the input."""
    up, down = getattr(module, "gate_up_proj", None), getattr(module, "down_proj", None)
    if not isinstance(up, Tensor) or not isinstance(down, Tensor) or up.ndim != 3 or down.ndim != 3:
        return "no stacked gate_up_proj and down_proj"
    if getattr(module, "is_transposed", True) or getattr(module, "has_bias", True):
        return "weights are transposed or have biases, or the class does not say"
    if not getattr(module, "has_gate", False):
        return "no gate"
    if getattr(type(module), "_apply_gate", None) is not _default_apply_gate:
        return "a gate of its own"
    if not is_silu(getattr(module, "act_fn", None)):
        return f"the activation is {type(getattr(module, 'act_fn', None)).__name__}, not SiLU"
    if up.shape[0] != down.shape[0] or up.shape[1] != 2 * down.shape[2] or up.shape[2] != down.shape[1]:
        return f"gate_up_proj {tuple(up.shape)} and down_proj {tuple(down.shape)} are not [E, 2I, H] and [E, H, I]"
    return None


def _fit(up: Tensor, down: Tensor, hidden_states: Tensor, index: Tensor, weights: Tensor) -> bool:
    if hidden_states.ndim != 2 or hidden_states.shape[1] != up.shape[2] or index.ndim != 2:
        return False
    if index.shape != weights.shape or index.shape[0] != hidden_states.shape[0]:
        return False
    if not hidden_states.dtype == up.dtype == down.dtype or torch.is_autocast_enabled(hidden_states.device.type):
        return False
    if up.dtype == torch.float32 and up.is_cuda and torch.get_float32_matmul_precision() == "highest":
        return False  # the kernel's products are TF32 there
    return kernels.takes(hidden_states, up, down, weights)


class KernelExperts(nn.Module):
    """In front of an upstream class of stacked expert weights: its forward, or the kernel in its place."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """``(hidden_states [T, H], top_k_index [T, K], top_k_weights [T, K]) -> [T, H]``, see :func:`experts`."""
        return experts(self, super().forward)(hidden_states, top_k_index, top_k_weights)
