"""Rope parameters other than a family's default, one set per type that upstream implements.

The original lengths are so short that prompts and continuations pass them. `linear`, `llama3` and `yarn` do not
depend on the length of the sequence; their numbers are such that some frequencies are kept, some interpolated and
some in between.
"""

from collections.abc import Mapping
from typing import Any

from runtime.verify.sizes import POSITIONS

SHORT_ORIGINAL = 8
"""Below the longest prompt, above the shortest: some rows start beyond it, others grow past it while decoding."""

_PARTIAL = "partial_rotary_factor"
_ORIGINAL = "original_max_position_embeddings"
_OF_ONE_TYPE = frozenset(
    {
        "rope_type",
        "type",
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "short_factor",
        "long_factor",
        "low_freq_factor",
        "high_freq_factor",
    }
)
"""Parameters that belong to a type and go with it; all others (base, rotated part, a family's own) stay."""


def rope_cases(config: Any) -> dict[str, dict[str, Any]]:
    """Overrides per case for a tiny configuration that has `rope_parameters`: every type, and other rotated parts of
    a head.

    Parameters per layer type (`{"full_attention": {...}, ...}`) are changed for all but sliding layers, and once more
    for those alone.
    """
    current = config.rope_parameters
    if not isinstance(current, Mapping) or not current:
        return {}
    if all(isinstance(value, Mapping) for value in current.values()):
        return _per_layer_type(config, current)
    sets = {name: {**_kept(current), **new} for name, new in _types(config, current).items()}
    return {name: _overrides(config, parameters) for name, parameters in sets.items()}


def _per_layer_type(config: Any, current: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    wide = [kind for kind in current if "sliding" not in kind]
    narrow = [kind for kind in current if "sliding" in kind]
    for kinds, only in ((wide, None), (narrow, "linear")):
        for name in _types(config, current[kinds[0]]) if kinds else ():
            if only not in (None, name):
                continue
            parameters = {
                kind: {**_kept(own), **_types(config, own)[name]} if kind in kinds else dict(own)
                for kind, own in current.items()
            }
            cases[f"{'+'.join(kinds)}.{name}"] = _overrides(config, parameters)
    return cases


def _kept(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if key not in _OF_ONE_TYPE}


def _types(config: Any, current: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    rotated = _rotated(config, current)
    own = str(current.get("rope_type", "default"))
    types: dict[str, dict[str, Any]] = {
        "default": {"rope_type": "default"},
        "linear": {"rope_type": "linear", "factor": 4.0},
        "dynamic": {"rope_type": "dynamic", "factor": 4.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            _ORIGINAL: 16,
        },
        "yarn": {"rope_type": "yarn", "factor": 8.0, _ORIGINAL: 16},
        "yarn_mscale": {
            "rope_type": "yarn",
            "factor": 8.0,
            _ORIGINAL: 16,
            "mscale": 1.0,
            "mscale_all_dim": 0.8,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        "longrope": {
            "rope_type": "longrope",
            "factor": POSITIONS / SHORT_ORIGINAL,
            _ORIGINAL: SHORT_ORIGINAL,
            "short_factor": [1.0 + 0.05 * i for i in range(rotated // 2)],
            "long_factor": [1.5 + 0.5 * i for i in range(rotated // 2)],
            # Read by some families only; the others' functions ignore them.
            "short_mscale": 1.1,
            "long_mscale": 1.3,
        },
    }
    if own == "default":
        del types["default"]
    if _ORIGINAL in current:
        types[f"{_ORIGINAL}={SHORT_ORIGINAL}"] = {**current, _ORIGINAL: SHORT_ORIGINAL}
    if _PARTIAL in current:
        for factor in (0.25, 0.5, 1.0):
            if factor != current[_PARTIAL]:
                types[f"{_PARTIAL}={factor}"] = {**current, _PARTIAL: factor}
    return types


def _rotated(config: Any, parameters: Mapping[str, Any]) -> int:
    """How many of a head's numbers are rotated; upstream's `dim` in modeling_rope_utils."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(head_dim * float(parameters.get(_PARTIAL) or 1.0))


def _overrides(config: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """A case's overrides: the parameters, and the fields outside of them that hold an original length."""
    overrides: dict[str, Any] = {"rope_parameters": parameters}
    sets = list(parameters.values()) if all(isinstance(v, Mapping) for v in parameters.values()) else [parameters]
    for one in sets:
        if one.get("rope_type") == "dynamic":
            overrides["max_position_embeddings"] = 2 * SHORT_ORIGINAL
        elif _ORIGINAL in one and hasattr(config, _ORIGINAL):
            overrides[_ORIGINAL] = one[_ORIGINAL]
    return overrides
