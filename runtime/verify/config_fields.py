"""What a configuration class declares: the fields of a dataclass, or in older releases what its constructor takes."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from transformers import PreTrainedConfig


@dataclasses.dataclass(frozen=True)
class ConfigField:
    """A declared field. ``type`` is its annotation, ``default`` its value where none is given, None if it has none."""

    name: str
    type: Any
    default: Any


def config_fields(cls: type[Any]) -> tuple[ConfigField, ...]:
    """The fields of a configuration class and its bases, each once, in the order of declaration."""
    if dataclasses.is_dataclass(cls):
        return tuple(ConfigField(field.name, field.type, _default(field)) for field in dataclasses.fields(cls))
    found: dict[str, ConfigField] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or not issubclass(base, PreTrainedConfig):
            continue
        taken = inspect.signature(vars(base)["__init__"]).parameters.values()
        for parameter in taken:
            if parameter.name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                default = None if parameter.default is inspect.Parameter.empty else parameter.default
                found.setdefault(parameter.name, ConfigField(parameter.name, parameter.annotation, default))
        if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken):
            break  # what its bases take cannot be given
    return tuple(found.values())


def declares_fields(cls: Any) -> bool:
    """Whether it is a configuration class, not an open one such as ``AutoConfig``."""
    return isinstance(cls, type) and issubclass(cls, PreTrainedConfig)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None
