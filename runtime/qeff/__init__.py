"""Inference runtime: KV buffers addressed by position, rotary tables, export, ONNX Runtime and Cloud AI 100.

The names below are imported at first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.qeff.auto_model import QEFFAutoModelForCausalLM
    from runtime.qeff.cache import QEffDynamicCache, QEffDynamicLayer
    from runtime.qeff.norm import CastLastRMSNormAIC, CustomRMSNormAIC, GemmaCustomRMSNormAIC, UnitRMSNormAIC
    from runtime.qeff.rotary import PrecomputedRotary
    from runtime.qeff.transforms import (
        CustomOpsTransform,
        KVCacheTransform,
        ModuleMappingTransform,
        UnsupportedFamilyError,
    )

__all__ = [
    "CastLastRMSNormAIC",
    "CustomOpsTransform",
    "CustomRMSNormAIC",
    "GemmaCustomRMSNormAIC",
    "KVCacheTransform",
    "ModuleMappingTransform",
    "PrecomputedRotary",
    "QEFFAutoModelForCausalLM",
    "QEffDynamicCache",
    "QEffDynamicLayer",
    "UnitRMSNormAIC",
    "UnsupportedFamilyError",
]

_HOME = {
    "CastLastRMSNormAIC": "norm",
    "CustomOpsTransform": "transforms",
    "CustomRMSNormAIC": "norm",
    "GemmaCustomRMSNormAIC": "norm",
    "KVCacheTransform": "transforms",
    "ModuleMappingTransform": "transforms",
    "PrecomputedRotary": "rotary",
    "QEFFAutoModelForCausalLM": "auto_model",
    "QEffDynamicCache": "cache",
    "QEffDynamicLayer": "cache",
    "UnitRMSNormAIC": "norm",
    "UnsupportedFamilyError": "transforms",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
