"""Which type a model is, as its configuration says."""

from torch import nn

from runtime.training.diagnostics import PatchError


def found_model_type(model: nn.Module) -> str | None:
    """The type of the outermost config, None where no config has one."""
    for module in model.modules():
        found = getattr(getattr(module, "config", None), "model_type", None)
        if isinstance(found, str) and found:
            return found
    return None


def model_type_of(model: nn.Module) -> str:
    """The type of a model: that of its outermost config.

    Raises:
        PatchError: no config with a model type.
    """
    found = found_model_type(model)
    if found is None:
        raise PatchError(f"{type(model).__name__} has no config with a model type; pass a transformers model")
    return found
