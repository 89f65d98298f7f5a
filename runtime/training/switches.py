"""The switches of a training run: ``use_rmpad``, ``use_liger_kernel`` and ``monkey_patch_kwargs``.

They say which patches are applied to a model, or to what is built later; nothing that they ask for is dropped silently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from runtime.training.diagnostics import PatchError
from runtime.training.features import RMPAD
from runtime.training.model_types import model_type_of
from runtime.training.monkey_patch import MONKEY_PATCHER, MonkeyPatcher
from runtime.training.patch_functions import Registered
from runtime.training.reports import PatchReports

LIGER = "liger"

_PATCH_TYPE = "patch_type"
_USE_RMPAD = "use_rmpad"
_OUTSIDE = ("model", "model_type", "strict")


def patch_for_training(
    target: nn.Module | PreTrainedConfig | str,
    *,
    use_rmpad: bool = False,
    use_liger_kernel: bool = False,
    monkey_patch_kwargs: Mapping[str, Any] | None = None,
    strict: bool | None = None,
    patcher: MonkeyPatcher = MONKEY_PATCHER,
) -> PatchReports:
    """Applies what the switches of a run ask for.

    Args:
        target: a model, patched in place (before it is wrapped, sharded or compiled); or a config or its model type:
            then models of this type that are built from now on.
        use_rmpad: padding is removed: by ``"liger"`` if that is applied and can, else by ``"rmpad"``.
        use_liger_kernel: ``"liger"`` is applied.
        monkey_patch_kwargs: ``patch_type``, one or several, is applied after those of the switches. All else is passed
            to every patch that takes it (``rope``, ``rms_norm``, ``fused_linear_cross_entropy``, ...); ``use_rmpad`` in
            it is the switch.
        strict: whether what would be a warning is an error; None: as the registry says.
        patcher: the registry.
    Returns:
        the reports in order of application, to print, to check or to undo; empty when nothing is asked for.
    Raises:
        PatchError: a patch cannot be applied, nothing has changed then; the switches contradict each other; or there
            are keywords and no patch for them.
        TypeError: ``patch_type`` is no name and no sequence of names, or the target is none of the above.
    """
    keywords = dict(monkey_patch_kwargs or {})
    for name in _OUTSIDE:
        if name in keywords:
            raise PatchError(f"monkey_patch_kwargs: {name!r} is not for the patches, pass it to patch_for_training")
    patch_types = [LIGER] if use_liger_kernel else []
    patch_types += [it for it in _named(keywords.pop(_PATCH_TYPE, ())) if it not in patch_types]

    if use_rmpad and not keywords.get(_USE_RMPAD, True):
        raise PatchError("use_rmpad is on, and monkey_patch_kwargs says use_rmpad=False")
    removing = bool(keywords.setdefault(_USE_RMPAD, use_rmpad))
    model_type = _type_of(target)
    if removing and RMPAD not in patch_types and not _taken(patcher, target, model_type, patch_types):
        patch_types.append(RMPAD)
    if not patch_types:
        given = sorted(keywords.keys() - {_USE_RMPAD})
        if given:
            raise PatchError(
                f"monkey_patch_kwargs has {', '.join(given)} and no patch is applied: set use_liger_kernel or "
                "use_rmpad, or name one as patch_type"
            )
        return PatchReports()
    if isinstance(target, nn.Module):
        return patcher.apply_monkey_patch_to_instance(target, patch_types, strict=strict, **keywords)
    return patcher.apply_monkey_patch(model_type, patch_types, strict=strict, **keywords)


def _named(patch_type: Any) -> list[str]:
    names = [patch_type] if isinstance(patch_type, str) else patch_type
    if not isinstance(names, Sequence) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"monkey_patch_kwargs: patch_type must be a name or a list of names, found {patch_type!r}")
    return list(dict.fromkeys(names))


def _type_of(target: nn.Module | PreTrainedConfig | str) -> str:
    if isinstance(target, nn.Module):
        return model_type_of(target)
    found = target.model_type if isinstance(target, PreTrainedConfig) else target
    if not isinstance(found, str):
        raise TypeError(f"a model, a config or a model type is needed, found {type(target).__name__}")
    return found


def _taken(
    patcher: MonkeyPatcher, target: nn.Module | PreTrainedConfig | str, model_type: str, patch_types: Sequence[str]
) -> bool:
    """Whether one of these patches removes padding itself when it is told ``use_rmpad``."""
    if not patch_types or model_type not in patcher:
        return False
    known = patcher.patches(model_type, target if isinstance(target, nn.Module) else None)
    return any(_USE_RMPAD in Registered.of(known[it]).names for it in patch_types if it in known)
