"""Tiny random models of any causal-LM type that upstream knows.

`build("gemma2", {"sliding_window": None})` returns a small configuration and an upstream model of it. Nothing here
knows a family: the fields come from the configuration class, the sizes from `sizes`, the few exceptions from the data
in `exceptions`.
"""

import copy
import typing
from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from runtime.verify.config_fields import declared, declares_fields
from runtime.verify.exceptions import EXCEPTIONS
from runtime.verify.sizes import (
    EXPERT_COUNTS,
    FIRST_FREE_TOKEN,
    FIXED,
    LAYER_COUNTS,
    ROUTING,
    SET_EVEN_IF_UNSET,
    SIZES,
)
from runtime.verify.weights import spread

_FEWEST_LAYERS = 3
_MOST_LAYERS = 12
_LATENT_ATTENTION = {"num_key_value_heads": "num_attention_heads", "head_dim": "qk_rope_head_dim"}
_UNSHRUNK_WEIGHTS = 8_000_000

Overrides = Mapping[str, Any]


class CannotBuildError(RuntimeError):
    """Upstream's own class refuses the tiny configuration, or the model of it; the message is upstream's."""


def model_types() -> tuple[str, ...]:
    """Every type in upstream's causal-LM mapping, in upstream's order, then those that this process registered."""
    registered = (config.model_type for config in AutoModelForCausalLM._model_mapping._extra_content)
    return tuple(dict.fromkeys((*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *registered)))


def config_class(model_type: str) -> type[Any]:
    """The configuration class of a type. Raises `KeyError` for a type that upstream does not know."""
    if model_type not in model_types():
        raise KeyError(f"{model_type!r} is not in upstream's causal-LM mapping")
    found: type[Any] = CONFIG_MAPPING[model_type]
    return found


def model_class(model_type: str) -> type[Any]:
    """The class that upstream's mapping names for a type."""
    found: type[Any] = AutoModelForCausalLM._model_mapping[config_class(model_type)]
    return found


def text_config_class(model_type: str) -> type[Any]:
    """The configuration class that the mapped model class is built from: for some composite types the text part of
    the type's own.
    """
    own = config_class(model_type)
    wanted = model_class(model_type).config_class
    return wanted if wanted is not own and wanted in own.sub_configs.values() else own


def tiny_config(model_type: str, overrides: Overrides | None = None) -> Any:
    """The tiny configuration of a type with some fields set otherwise.

    `overrides` are the configuration's own field names; in a composite type the fields of the text part may be given
    directly. Raises `CannotBuildError` with upstream's message where upstream refuses the combination.
    """
    cls = text_config_class(model_type)
    given = dict(overrides or {})
    values = _tiny_values(cls, given)
    return _make(cls, values)


def build(
    model_type: str, overrides: Overrides | None = None, seed: int = 0, attention: str | None = "eager"
) -> tuple[Any, nn.Module]:
    """A tiny configuration and upstream's model of it: fp32, eval mode, weights spread by `seed`.

    `attention` is one of upstream's implementations, None its own choice; the weights do not depend on it.

    Raises `CannotBuildError` where upstream refuses, `KeyError` for an unknown type.
    """
    return model_of(model_type, tiny_config(model_type, overrides), seed, attention)


def model_of(model_type: str, config: Any, seed: int = 0, attention: str | None = "eager") -> tuple[Any, nn.Module]:
    """Upstream's model of a configuration made by `tiny_config`; otherwise like `build`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # some vectors keep what upstream's initialisation draws
        try:
            model = model_class(model_type)._from_config(config, attn_implementation=attention)
        except Exception as refusal:
            raise CannotBuildError(f"model: {_message(refusal)}") from refusal
    model = typing.cast(nn.Module, model.float().eval())
    if count_weights(model) > _UNSHRUNK_WEIGHTS:
        raise CannotBuildError(f"model: {count_weights(model):,} weights; some size field is not shrunk")
    spread(model, seed)
    return model.config, model


def count_weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _make(cls: type[Any], values: dict[str, Any]) -> Any:
    try:
        config = cls(**copy.deepcopy(values))
    except Exception as refusal:
        raise CannotBuildError(f"config: {_message(refusal)}") from refusal
    if not hasattr(config, "pad_token_id"):
        config.pad_token_id = None  # some models of earlier releases read what a saved configuration always has
    return config


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}"


def _tiny_values(cls: type[Any], overrides: Overrides) -> dict[str, Any]:
    """All field values for a class: tiny sizes, then exceptions, then the caller's; layer counts last as they depend
    on the rest.
    """
    values = _shrunk(cls)
    values |= _exceptions(cls)
    given = _nested(cls, overrides)
    for name, value in given.items():
        mine = values.get(name)
        values[name] = (
            {**mine, **value}
            if isinstance(mine, dict) and isinstance(value, dict) and name in cls.sub_configs
            else value
        )
    return _with_layers(cls, values)


def _with_layers(cls: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    """Adds the layer count: the class's usual one if that fits the values, else one that does."""
    if LAYER_COUNTS & set(values):
        return values
    usual = dict(values)
    _set_layers(cls, usual, _usual_layer_count(typing.cast(Hashable, cls)))
    try:
        _make(cls, usual)
    except CannotBuildError:
        _set_layers(cls, values, layer_count(cls, values))
        return values
    return usual


@cache
def _usual_layer_count(cls: Any) -> int:
    return layer_count(cls, {**_shrunk(cls), **_exceptions(cls)})


def _nested(cls: type[Any], overrides: Overrides) -> dict[str, Any]:
    """Moves fields that only the text part has into it."""
    own = set(declared(cls)) | set(cls.attribute_map)
    text = cls.sub_configs.get("text_config")
    result: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in own and text is not None and declares_fields(text):
            result.setdefault("text_config", {})[name] = value
        else:
            result[cls.attribute_map.get(name, name)] = value
    return result


def _exceptions(cls: type[Any]) -> dict[str, Any]:
    return copy.deepcopy({field: entry.value for field, entry in EXCEPTIONS.get(cls.model_type, {}).items()})


def _shrunk(cls: type[Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    next_token = 3
    inherited = set(declared(PreTrainedConfig))
    one_expert = any(f.default == 1 and EXPERT_COUNTS & set(_names_of(cls, n)) for n, f in declared(cls).items())
    for name, field in declared(cls).items():
        default = field.default
        known = next((n for n in _names_of(cls, name) if n in SIZES), name)
        if name in inherited:
            continue
        if name in cls.sub_configs:
            sub = _sub_config_class(cls, name)
            if sub is not None:
                values[name] = _with_layers(sub, {"model_type": sub.model_type, **_shrunk(sub), **_exceptions(sub)})
        elif _is_token(name):
            if isinstance(default, int) and default >= FIRST_FREE_TOKEN:
                values[name], next_token = next_token, next_token + 1
            elif isinstance(default, list):
                values[name] = default[:1] and [2]
        elif name in FIXED:
            values[name] = FIXED[name]
        elif known in SIZES and (
            _is_size(default) or (default is None and known in SET_EVEN_IF_UNSET) or (one_expert and known in ROUTING)
        ):
            values[name] = SIZES[known]
    if "kv_lora_rank" in values:
        # Multi-head latent attention: keys are made per query head, and `head_dim` is the rotated part.
        values |= {name: values[of] for name, of in _LATENT_ATTENTION.items() if name in values}
    return values


def _names_of(cls: type[Any], field: str) -> tuple[str, ...]:
    """A field's own name and the general ones that the class maps to it."""
    return (field, *(alias for alias, real in cls.attribute_map.items() if real == field))


def _is_size(default: Any) -> bool:
    """0 and 1 say 'none' or 'no groups' rather than how many, and stay."""
    return isinstance(default, int) and not isinstance(default, bool) and default > 1


def _sub_config_class(cls: type[Any], name: str) -> type[Any] | None:
    """The class of a nested configuration; where the declared one is open (`AutoConfig`) that of the default
    instance.
    """
    declared: type[Any] = cls.sub_configs[name]
    if declares_fields(declared):
        return declared
    try:
        default = getattr(cls(), name, None)
    except Exception:
        return None
    return None if default is None else type(default)


def _is_token(name: str) -> bool:
    return name.endswith(("_token_id", "_token_index", "_token", "_index")) and not name.startswith("num_")


def layer_count(cls: type[Any], values: Mapping[str, Any]) -> int:
    """The fewest layers (at least 3) in which every kind of layer of the class's default pattern occurs.

    The kinds are read from the per-layer lists that the configuration itself makes (`layer_types`,
    `layers_block_type`, ...).
    """
    try:
        kinds = _layer_kinds(cls())
    except Exception:
        kinds = {}
    best, most = _FEWEST_LAYERS + 1, -1
    for count in range(_FEWEST_LAYERS, _MOST_LAYERS + 1):
        trial = dict(values)
        _set_layers(cls, trial, count)
        try:
            found = _layer_kinds(_make(cls, trial))
        except CannotBuildError:
            continue
        score = sum(len(found.get(name, set()) & wanted) for name, wanted in kinds.items())
        if score > most:
            best, most = count, score
    return best


def _layer_kinds(config: Any) -> dict[str, set[Any]]:
    """The values in each per-layer list of a configuration; lists of more than four different values are no kinds."""
    count = getattr(config, "num_hidden_layers", None)
    kinds: dict[str, set[Any]] = {}
    for name in _list_names(config):
        value = getattr(config, name, None)
        if (
            isinstance(value, list | tuple)
            and count
            and len(value) == count
            and all(isinstance(v, str | int) for v in value)
        ):
            different = set(value)
            if len(different) <= 4:
                kinds[name] = different
    return kinds


def _list_names(config: Any) -> Iterable[str]:
    return sorted(set(vars(config)) | {"layer_types", "layers_block_type"})


def _set_layers(cls: type[Any], values: dict[str, Any], count: int) -> None:
    """Sets every layer count of a class to `count` and cuts the per-layer lists among its defaults."""
    fields = {name: field.default for name, field in declared(cls).items()}
    default_count = next((fields[name] for name in sorted(LAYER_COUNTS) if isinstance(fields.get(name), int)), None)
    for name, default in fields.items():
        if name in LAYER_COUNTS or (LAYER_COUNTS & set(_names_of(cls, name)) and isinstance(default, int)):
            values[name] = count
        elif (
            name not in values
            and isinstance(default, list | tuple)
            and default_count
            and len(default) == default_count > count
        ):
            values[name] = default[:count]
