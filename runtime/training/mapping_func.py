"""Models by type: registered with transformers' auto classes, and the auto class that loads or builds one.

``create_model_*`` answer with an auto class and leave the construction to the caller, who has the keywords for it.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from runtime.training.diagnostics import listed, nearest

logger = logging.getLogger(__name__)

AUTO_REGISTER_MODEL_MAPPING: dict[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "image_text_to_text": AutoModelForImageTextToText,
    "masked_lm": AutoModelForMaskedLM,
    "general": AutoModel,
}
"""General type -> auto class, in the order in which they are tried. ``general`` has nearly every model."""

_registered: dict[str, str] = {}


def register_model(
    model_type: str,
    model_config: type[PreTrainedConfig],
    model_class: type[PreTrainedModel],
    model_general_type: str = "causal_lm",
) -> None:
    """Makes a model known to the auto classes. To register the same again changes nothing.

    Args:
        model_type: ``model_config.model_type``.
        model_config, model_class: classes; ``model_class.config_class`` is ``model_config``.
        model_general_type: which auto class builds it, a key of ``AUTO_REGISTER_MODEL_MAPPING``. Call again with
            another one to have several; ``create_model_*`` then use the last.
    Raises:
        ValueError: an unknown general type, or classes that do not belong together.
        TypeError: no classes of the right kind.
    """
    auto_class = _auto_class(model_general_type)
    for given, base in ((model_config, PreTrainedConfig), (model_class, PreTrainedModel)):
        if not (isinstance(given, type) and issubclass(given, base)):
            raise TypeError(f"register_model({model_type!r}): {given!r} is no subclass of {base.__name__}")
    if not model_type or model_config.model_type != model_type:
        raise ValueError(
            f"register_model({model_type!r}): {model_config.__name__} has model_type {model_config.model_type!r}"
        )
    expected = getattr(model_class, "config_class", None)
    if expected is not model_config and not _is_reimport(expected, model_config):
        raise ValueError(
            f"register_model({model_type!r}): {model_class.__name__}.config_class is "
            f"{getattr(expected, '__name__', expected)}, not {model_config.__name__}"
        )
    if model_type in CONFIG_MAPPING:
        _warn_of_replacing(model_type, "config", CONFIG_MAPPING[model_type], model_config)
    if model_config in auto_class._model_mapping:
        present = auto_class._model_mapping[model_config]
        for cls in present if isinstance(present, (list, tuple)) else (present,):
            _warn_of_replacing(model_type, auto_class.__name__, cls, model_class)
    AutoConfig.register(model_type, model_config, exist_ok=True)
    auto_class.register(model_config, model_class, exist_ok=True)
    _registered[model_type] = model_general_type


def create_model_from_pretrained(
    model_name_or_path: str | os.PathLike[str], model_general_type: str | None = None, **config_kwargs: Any
) -> Any:
    """The auto class that loads a checkpoint; call its ``from_pretrained``.

    Args:
        model_name_or_path: the checkpoint; only its config is read.
        model_general_type: decides; None: as ``register_model`` was told, else by the config's ``architectures``, else
            the first auto class that has the config, with a warning if there are several.
        config_kwargs: for ``AutoConfig.from_pretrained``.
    Raises:
        ValueError: an unknown general type, or no auto class has the config.
    """
    if model_general_type is not None:
        _auto_class(model_general_type)
    return _choose(AutoConfig.from_pretrained(model_name_or_path, **config_kwargs), model_general_type)


def create_model_from_config(
    model_type: str, config: Mapping[str, Any] | None = None, model_general_type: str | None = None
) -> tuple[Any, PreTrainedConfig]:
    """The auto class that builds a model from a config, and the config; call ``from_config`` with it.

    Args:
        model_type: a type that transformers knows or ``register_model`` made known.
        config: its fields; what is missing has the default.
        model_general_type: as for ``create_model_from_pretrained``.
    Raises:
        ValueError: an unknown model type or general type, a config of another type, or no auto class has the config.
        TypeError: the config is no mapping.
    """
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"model type {model_type!r} is unknown to transformers and was not registered"
            f"{nearest(str(model_type), CONFIG_MAPPING) or '.'} Registered here: {listed(_registered)}. Was the module "
            "imported that calls register_model?"
        )
    if config is not None and not isinstance(config, Mapping):
        raise TypeError(f"a mapping of config fields is needed, found {type(config).__name__}")
    fields = dict(config or {})
    given = fields.pop("model_type", model_type)
    if given != model_type:
        raise ValueError(f"the config says model_type {given!r}, but {model_type!r} was asked for")
    made = CONFIG_MAPPING[model_type](**fields)
    return _choose(made, model_general_type), made


def _auto_class(general_type: str) -> Any:
    if general_type not in AUTO_REGISTER_MODEL_MAPPING:
        raise ValueError(
            f"unknown model_general_type {general_type!r}"
            f"{nearest(str(general_type), AUTO_REGISTER_MODEL_MAPPING) or '.'} "
            f"There are: {', '.join(AUTO_REGISTER_MODEL_MAPPING)}"
        )
    return AUTO_REGISTER_MODEL_MAPPING[general_type]


def _choose(config: PreTrainedConfig, general_type: str | None) -> Any:
    model_type = config.model_type
    fitting = [name for name, auto in AUTO_REGISTER_MODEL_MAPPING.items() if _has(auto, config)]
    if general_type is not None:
        auto_class = _auto_class(general_type)
        if general_type not in fitting:
            raise ValueError(f"model type {model_type!r} has no {general_type!r} model. It has: {listed(fitting)}")
        return auto_class
    if not fitting:
        raise ValueError(
            f"model type {model_type!r} ({type(config).__name__}) has no model that can be built: it is in none of "
            f"{', '.join(auto.__name__ for auto in AUTO_REGISTER_MODEL_MAPPING.values())}"
        )
    if _registered.get(model_type) in fitting:
        return AUTO_REGISTER_MODEL_MAPPING[_registered[model_type]]
    named = [name for name in fitting if _is_saved_from(AUTO_REGISTER_MODEL_MAPPING[name], config)]
    candidates = named or fitting
    special = [name for name in candidates if name != "general"]
    if len(special) > 1:
        logger.warning(
            "model type %r is %s; %r is taken, pass model_general_type to choose",
            model_type,
            " and ".join(map(repr, special)),
            special[0],
        )
    return AUTO_REGISTER_MODEL_MAPPING[candidates[0]]


def _has(auto_class: Any, config: PreTrainedConfig) -> bool:
    remote = getattr(config, "auto_map", None) or {}
    return type(config) in auto_class._model_mapping or auto_class.__name__ in remote


def _is_saved_from(auto_class: Any, config: PreTrainedConfig) -> bool:
    """Whether the architecture that the checkpoint was saved from is one that the auto class builds."""
    if type(config) not in auto_class._model_mapping:
        return False
    found = auto_class._model_mapping[type(config)]
    names = {cls.__name__ for cls in (found if isinstance(found, (list, tuple)) else (found,))}
    return not names.isdisjoint(getattr(config, "architectures", None) or ())


def _is_reimport(old: Any, new: Any) -> bool:
    return (getattr(old, "__module__", None), getattr(old, "__qualname__", "")) == (new.__module__, new.__qualname__)


def _warn_of_replacing(model_type: str, what: str, old: Any, new: Any) -> None:
    if old is not new and not _is_reimport(old, new):
        logger.warning(
            "register_model(%r): %s.%s is replaced by %s.%s (%s)",
            model_type,
            old.__module__,
            old.__qualname__,
            new.__module__,
            new.__qualname__,
            what,
        )
