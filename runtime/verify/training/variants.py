"""The training variants as the registry applies them, by stage."""

from importlib import import_module
from typing import Any

from torch import nn

from runtime import own_variants
from runtime.verify.switches import generated_families
from runtime.verify.training.trial import Patch, Undo


class NoVariantError(RuntimeError):
    """The family has no training variant; the message says why."""


def packed(family: str, model: nn.Module) -> Undo:
    """Padding removed, without kernels."""
    from runtime.training import MONKEY_PATCHER

    report: Any = MONKEY_PATCHER.apply_monkey_patch(family, "rmpad", model=model)
    undo: Undo = report.undo
    return undo


def liger(family: str, model: nn.Module) -> Undo:
    """Padding removed, and every kernel that fits, in Triton's interpreter: tiny models are on the CPU. Environment
    TRITON_INTERPRET=1 must be set before Triton is imported.
    """
    from runtime.training import MONKEY_PATCHER
    from runtime.training.kernels import interpreter

    interpreter.install()
    report: Any = MONKEY_PATCHER.apply_monkey_patch(family, "liger", model=model, use_rmpad=True)
    undo: Undo = report.undo
    return undo


PATCHES: dict[str, Patch] = {"packed": packed, "liger": liger}


def require_variant(family: str) -> None:
    """Raises NoVariantError with the compiler's reason where a family was not generated."""
    if family in generated_families("rmpad") or family in own_variants.families("rmpad"):
        return
    if (reason := own_variants.refused("rmpad").get(family)) is not None:
        raise NoVariantError(reason)
    try:
        index = import_module("generated.rmpad")
    except ModuleNotFoundError:
        raise NoVariantError("no training variants were generated") from None
    raise NoVariantError(index.REFUSED.get(family, "it was not generated"))
