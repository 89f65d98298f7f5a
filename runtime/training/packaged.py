"""Patches that registered packages (``runtime.register``) bring, chosen by a model's code."""

from collections.abc import Collection, Mapping

from torch import nn

from runtime import own_variants
from runtime.training import swapping
from runtime.training.diagnostics import PatchError
from runtime.training.patch_functions import Registered


class PackagedPatches:
    """What the modules of registered packages registered when they were imported.

    Args:
        target: which of their variants; None: no package is looked at.
    """

    def __init__(self, target: str | None) -> None:
        self._target = target
        self._modules: dict[str, dict[str, dict[str, Registered]]] = {}  # by generated module, type and patch type

    def add(self, model_type: str, patch_type: str, new: Registered) -> bool:
        """Keeps a patch of a registered package; False for any other, which is not kept."""
        if self._target is None or not own_variants.is_ours(new.name):
            return False
        own_variants.check_imported(new.function.__module__)
        patches = self._modules.setdefault(new.function.__module__, {})
        patches.setdefault(model_type, {})[patch_type] = new
        return True

    @property
    def families(self) -> Mapping[str, str]:
        """Model type -> generated module."""
        return {} if self._target is None else own_variants.families(self._target)

    @property
    def layers(self) -> Collection[Mapping[str, Mapping[str, Registered]]]:
        """All patches there are, by model type and patch type, of one module after the other."""
        return self._modules.values()

    def refused(self, model_type: str) -> str | None:
        """Why a package has nothing for a type that it tells of."""
        return None if self._target is None else own_variants.refused(self._target).get(model_type)

    def of(self, model_type: str, model: nn.Module | None) -> dict[str, Registered] | None:
        """The patches for the code of the model or, without one, for that of the type; None if no package has the type.

        Raises:
            PatchError: the model's code is another than the package was generated from, or the type's is not known, or
                the variants cannot be imported.
        """
        if self._target is None:
            return None
        classes = [] if model is None else [swapping.upstream_class(module) for module in model.modules()]
        # An error tells of the first: the model's own class, not one around it.
        classes.sort(key=lambda cls: getattr(getattr(cls, "config_class", None), "model_type", None) != model_type)
        try:
            module = own_variants.variants_of_type(self._target, model_type, classes)
        except own_variants.OtherTextError as error:
            raise PatchError(str(error)) from error
        except ImportError as error:
            raise PatchError(f"the variants of {model_type!r} cannot be imported: {error}") from error
        return None if module is None else self._modules.get(module.__name__, {}).get(model_type, {})
