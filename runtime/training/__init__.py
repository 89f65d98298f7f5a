"""Training runtime: the registry of patches, models by type, and what the generated training variants call.

The names below are imported at first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.training.diagnostics import PatchError
    from runtime.training.features import active
    from runtime.training.mapping_func import (
        create_model_from_config,
        create_model_from_pretrained,
        register_model,
    )
    from runtime.training.monkey_patch import (
        MONKEY_PATCHER,
        MonkeyPatcher,
        RefusedFamilyError,
        UnknownPatchError,
    )
    from runtime.training.patching import PatchReport, PatchReports, Touched, Variant, apply_variants, variants
    from runtime.training.switches import patch_for_training
    from runtime.training.trainer import PatchCallback

__all__ = [
    "MONKEY_PATCHER",
    "MonkeyPatcher",
    "PatchCallback",
    "PatchError",
    "PatchReport",
    "PatchReports",
    "RefusedFamilyError",
    "Touched",
    "UnknownPatchError",
    "Variant",
    "active",
    "apply_variants",
    "create_model_from_config",
    "create_model_from_pretrained",
    "patch_for_training",
    "register_model",
    "variants",
]

_HOME = {
    "MONKEY_PATCHER": "monkey_patch",
    "MonkeyPatcher": "monkey_patch",
    "PatchCallback": "trainer",
    "PatchError": "diagnostics",
    "PatchReport": "patching",
    "PatchReports": "patching",
    "RefusedFamilyError": "monkey_patch",
    "Touched": "patching",
    "UnknownPatchError": "monkey_patch",
    "Variant": "patching",
    "active": "features",
    "apply_variants": "patching",
    "create_model_from_config": "mapping_func",
    "create_model_from_pretrained": "mapping_func",
    "patch_for_training": "switches",
    "register_model": "mapping_func",
    "variants": "patching",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
