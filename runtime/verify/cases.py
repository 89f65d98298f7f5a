"""Which configurations of a family are verified: its tiny default, and another value of each field its code branches
on.

The fields (`switches`) are found by the compiler in the family's own source and recorded in the manifest; values
follow from each field's type, annotation and default in the configuration class, and from the general data in
`alternatives`.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runtime.verify import factory
from runtime.verify.alternatives import (
    COMPANIONS,
    NOT_VARIED,
    NOT_VARIED_BEGINNINGS,
    NOT_VARIED_ENDINGS,
    OTHER_VALUES,
    SOFT_CAP,
)
from runtime.verify.config_fields import declared, declares_fields
from runtime.verify.rope_cases import rope_cases
from runtime.verify.sizes import FIXED, SIZES, WINDOW

DEFAULT = "default"

_LARGE_EPSILON = 0.05
"""Where norms add it matters to every logit; the usual 1e-6 hides a forgotten one."""


@dataclass(frozen=True)
class Case:
    """One configuration: the tiny default with some fields set otherwise."""

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NotVaried:
    """A field that code branches on, without another value to try, and why."""

    field: str
    reason: str


@dataclass(frozen=True)
class CaseList:
    """All cases of a family, the default first, and the switches that gave none."""

    cases: tuple[Case, ...]
    not_varied: tuple[NotVaried, ...] = ()


def cases_for(model_type: str, switches: Iterable[str] = ()) -> CaseList:
    """The cases of a family.

    `switches`: names of configuration fields; `rope_parameters` stands for every rope type, `a.b` for field `b` of a
    nested configuration. Raises `factory.CannotBuildError` where the default itself cannot be built, KeyError for an
    unknown type.
    """
    cls = factory.text_config_class(model_type)
    config = factory.tiny_config(model_type)
    cases = [Case(DEFAULT)]
    not_varied: list[NotVaried] = []
    seen = {_contents(config)}
    for switch in sorted(set(switches)):
        found = _cases_of(cls, config, switch)
        if isinstance(found, NotVaried):
            not_varied.append(found)
            continue
        different = [case for case in found if _is_new(model_type, case, seen)]
        cases += different
        if not different:
            not_varied.append(NotVaried(switch, "its other values give configurations that other cases have"))
    return CaseList(tuple(cases), tuple(not_varied))


def _is_new(model_type: str, case: Case, seen: set[str]) -> bool:
    """Whether no case before made the same configuration; one that upstream refuses is always new."""
    try:
        contents = _contents(factory.tiny_config(model_type, case.overrides))
    except factory.CannotBuildError:
        return True
    if contents in seen:
        return False
    seen.add(contents)
    return True


def _contents(config: Any) -> str:
    return json.dumps(config.to_dict(), sort_keys=True, default=str)


def _cases_of(cls: type[Any], config: Any, switch: str) -> list[Case] | NotVaried:
    outer, _, inner = switch.partition(".")
    if outer in ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor"):
        found = [Case(f"rope_parameters={name}", overrides) for name, overrides in rope_cases(config).items()]
        return found or NotVaried(switch, "the tiny configuration has no rope parameters")
    if (reason := _reason_not_to_vary(switch) or _reason_not_to_vary(inner)) is not None:
        return NotVaried(switch, reason)
    if inner:
        return _nested_cases(cls, config, outer, inner)
    real = cls.attribute_map.get(outer, outer)
    fields = declared(cls)
    if (reason := _reason_not_to_vary(real)) is not None:
        return NotVaried(switch, reason)
    if real not in fields:
        return _undeclared(cls, config, switch)
    names = (real, outer, *(alias for alias, target in cls.attribute_map.items() if target == real))
    values = other_values(names, fields[real].type, getattr(config, real), config)
    if isinstance(values, NotVaried):
        return dataclasses.replace(values, field=switch)
    available = set(fields) | set(cls.attribute_map)
    return [
        Case(f"{switch}={_label(value)}", {**_companions(names, value, available), real: value}) for value in values
    ]


def _undeclared(cls: type[Any], config: Any, switch: str) -> list[Case] | NotVaried:
    """A field of a composite's text part is given as if it were the composite's own; any class takes fields that it
    does not declare, and code may read them with a fallback.
    """
    text = getattr(config, "text_config", None) if "text_config" in cls.sub_configs else None
    if text is not None and switch in declared(type(text)):
        return _cases_of(type(text), text, switch)
    if hasattr(config, switch):
        return NotVaried(switch, "derived from other fields")
    if switch.endswith("bias"):
        return [Case(f"{switch}=True", {switch: True})]
    if SIZES.get(switch) == WINDOW:
        return [Case(f"{switch}={WINDOW}", {switch: WINDOW})]
    if switch in OTHER_VALUES:
        return [Case(f"{switch}={_label(value)}", {switch: value}) for value in OTHER_VALUES[switch]]
    return NotVaried(switch, "not declared by the configuration class, and no value known")


def _nested_cases(cls: type[Any], config: Any, outer: str, inner: str) -> list[Case] | NotVaried:
    nested = getattr(config, outer, None)
    if nested is None or not declares_fields(type(nested)):
        return NotVaried(f"{outer}.{inner}", "not a nested configuration with declared fields")
    fields = declared(type(nested))
    if inner not in fields:
        return NotVaried(f"{outer}.{inner}", "not a field of the nested configuration class")
    values = other_values((inner,), fields[inner].type, getattr(nested, inner), config)
    if isinstance(values, NotVaried):
        return dataclasses.replace(values, field=f"{outer}.{inner}")
    return [Case(f"{outer}.{inner}={_label(value)}", {outer: {inner: value}}) for value in values]


def _reason_not_to_vary(name: str) -> str | None:
    if name in NOT_VARIED:
        return NOT_VARIED[name]
    if isinstance(FIXED.get(name), bool):
        return "fixed in every tiny configuration"
    parts = (
        *(reason for beginning, reason in NOT_VARIED_BEGINNINGS.items() if name.startswith(beginning)),
        *(reason for ending, reason in NOT_VARIED_ENDINGS.items() if name.endswith(ending)),
    )
    return next(iter(parts), None)


def _companions(names: Iterable[str], value: Any, available: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        if value not in (None, False):
            found |= {other: v for other, v in COMPANIONS.get(name, {}).items() if other in available}
    return found


def other_values(names: Sequence[str], annotation: Any, current: Any, config: Any) -> list[Any] | NotVaried:
    """Values to try for a field besides `current`, the tiny configuration's, or why there are none.

    `names` are the field's own and general names; None is tried wherever the annotation allows it and `current` is
    something.
    """
    values = _by_kind(names, annotation, current, config)
    if isinstance(values, NotVaried):
        return values
    if current is not None and _allows_none(annotation) and not isinstance(current, list | tuple | bool):
        values = [*values, None]
    unique = [value for i, value in enumerate(values) if value != current and value not in values[:i]]
    return unique or NotVaried(names[0], "no other value")


def _by_kind(names: Sequence[str], annotation: Any, current: Any, config: Any) -> list[Any] | NotVaried:
    listed = next((OTHER_VALUES[name] for name in names if name in OTHER_VALUES), None)
    if listed is not None:
        return list(listed)
    kinds = _kinds(annotation)
    choices = [
        choice for kind in kinds for choice in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal
    ]
    if choices:
        return choices
    if isinstance(current, bool) or (current is None and bool in kinds):
        return [not current]
    if any("softcap" in name or "soft_cap" in name for name in names):
        return [SOFT_CAP]
    if any(SIZES.get(name) == WINDOW for name in names):
        return [WINDOW] if current is None else [WINDOW - 3]
    if any(name in SIZES for name in names):
        return [] if _allows_none(annotation) else NotVaried(names[0], "a size")
    if isinstance(current, str):
        return _other_words(names, current)
    if isinstance(current, list | tuple):
        return _other_lists(names, list(current), config)
    if current is None and _is_list(kinds):
        return [[1]]
    if any(name.endswith(("eps", "epsilon")) for name in names):
        return [_LARGE_EPSILON]
    if isinstance(current, float) or (current is None and float in kinds):
        return [round(current * 1.75, 6) if current else 0.5]
    if isinstance(current, int):
        return [current + 1]
    return NotVaried(names[0], f"no other value known for {type(current).__name__}")


def _other_words(names: Sequence[str], current: str) -> list[Any] | NotVaried:
    if any("act" in name.split("_") or "activation" in name or name == "afn" for name in names):
        return ["gelu" if "silu" in current else "silu"]
    return NotVaried(names[0], f"no other word known beside {current!r}")


def _other_lists(names: Sequence[str], current: list[Any], config: Any) -> list[Any] | NotVaried:
    count = getattr(config, "num_hidden_layers", None)
    if all(isinstance(item, str) for item in current) and len(current) == count:
        return _other_patterns(current, config)
    if all(isinstance(item, int) for item in current):
        if len(current) == count and set(current) <= {0, 1}:
            return [[index % 2 for index in range(len(current))], [1 - value for value in current]]
        return [[1], []]
    if current and all(isinstance(item, float) for item in current):
        return [[round(item * 1.5 + 0.1, 6) for item in current]]
    return NotVaried(names[0], "no other list known")


def _other_patterns(current: list[str], config: Any) -> list[Any]:
    """Per-layer kinds in another order, and each kind alone; a window beside full attention where there are
    windows.
    """
    kinds = list(dict.fromkeys(current))
    if kinds == ["full_attention"] and hasattr(config, "sliding_window"):
        kinds.append("sliding_attention")
    alternating = [kinds[index % len(kinds)] for index in range(len(current))]
    return [current[::-1], alternating, *([kind] * len(current) for kind in kinds)]


def _kinds(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return typing.get_args(annotation)
    return (annotation,)


def _allows_none(annotation: Any) -> bool:
    return type(None) in _kinds(annotation)


def _is_list(kinds: tuple[Any, ...]) -> bool:
    return any((typing.get_origin(kind) or kind) in (list, tuple) for kind in kinds)


def _label(value: Any) -> str:
    if isinstance(value, list):
        short = {"full_attention": "full", "sliding_attention": "sliding"}
        return ",".join(short.get(item, str(item)) if isinstance(item, str) else str(item) for item in value) or "[]"
    return str(value)
