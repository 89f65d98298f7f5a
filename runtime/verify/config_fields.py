"""The fields of a configuration class, whichever of upstream's two ways it is written in: a dataclass, or a class whose
constructor takes them (as in older releases, and outside of upstream)."""

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

from transformers import PreTrainedConfig

_MADE_BY_DATACLASS = "<string>"
"""The file of a constructor that the standard library wrote."""


@dataclass(frozen=True)
class ConfigField:
    """type: its annotation, `Any` where there is none; default: None where there is none."""

    type: Any
    default: Any


def declared(cls: type[Any]) -> Mapping[str, ConfigField]:
    """Fields by name, in the order of the class: those of a dataclass or, where a class has a constructor of its own
    (as configurations outside of upstream have), that constructor's parameters, and the base's where it hands on."""
    own = next((base for base in cls.__mro__ if "__init__" in vars(base)), cls)
    written = inspect.unwrap(vars(own)["__init__"])
    if issubclass(cls, PreTrainedConfig) and written.__code__.co_filename != _MADE_BY_DATACLASS:
        parameters = list(inspect.signature(written, eval_str=True).parameters.values())[1:]
        hands_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        fields = dict(declared(own.__mro__[1] if hands_on else PreTrainedConfig))
        for one in parameters:
            if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
                fields[one.name] = ConfigField(
                    Any if one.annotation is one.empty else one.annotation,
                    None if one.default is one.empty else one.default,
                )
        return fields
    return {field.name: _of_dataclass(field) for field in (dataclasses.fields(cls) if is_dataclass(cls) else ())}


def declares_fields(cls: Any) -> bool:
    """Whether a class says what its fields are."""
    return isinstance(cls, type) and (is_dataclass(cls) or issubclass(cls, PreTrainedConfig))


def _of_dataclass(field: dataclasses.Field[Any]) -> ConfigField:
    if field.default is not dataclasses.MISSING:
        return ConfigField(field.type, field.default)
    made = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
    return ConfigField(field.type, made)
