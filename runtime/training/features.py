"""What a patch can switch on, and whether it is on for a module.

A variant is right for any subset of its features: the code asks ``active`` where it differs from upstream.
"""

from torch import nn

ATTRIBUTE = "regraft_features"

RMPAD = "rmpad"

KERNELS = frozenset({"rope", "rms_norm", "swiglu", "experts", "cross_entropy", "fused_linear_cross_entropy"})
"""Features that are a Triton kernel: they need a machine that can run one."""

KEYWORDS = {
    "rope": "rope",
    "rms_norm": "rms_norm",
    "swiglu": "swiglu",
    "geglu": "swiglu",
    "experts": "experts",
    "cross_entropy": "cross_entropy",
    "fused_linear_cross_entropy": "fused_linear_cross_entropy",
    "use_rmpad": RMPAD,
}
"""Keyword of the generated patch functions -> the feature that it switches."""

_NONE: frozenset[str] = frozenset()


def active(module: nn.Module, feature: str) -> bool:
    """Whether the feature is switched on for this module. The answer changes only when a patch is applied or undone."""
    return feature in getattr(module, ATTRIBUTE, _NONE)
