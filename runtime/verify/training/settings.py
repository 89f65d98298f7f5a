"""What verification sets in every configuration: no chance, and auxiliary losses of routers that count."""

from collections.abc import Iterator
from typing import Any, Final

from torch import nn
from transformers import PreTrainedConfig

RANDOM: Final = ("drop", "jitter")
"""Parts of the names that upstream gives to the rates of random effects: `attention_dropout`, `resid_pdrop`,
`layerdrop`, `drop_path_rate`, `router_jitter_noise`, ...
"""
AUXILIARY: Final = "aux_loss_coef"
"""The end of the names of auxiliary losses' weights."""

_WEIGHT = 0.3
"""With upstream's usual 0.001 an auxiliary loss that is wrong is lost in the rounding of the whole."""


def settle(config: Any) -> None:
    """Changes a configuration in place, nested ones too.

    Rates of random effects become zero; an auxiliary loss weighs much, and is off: it is of a batch, so that it
    cannot be compared one sequence at a time, and `router` turns it on.
    """
    for part in _parts(config):
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and any(word in name for word in RANDOM):
                setattr(part, name, 0.0)
            elif isinstance(value, float) and name.endswith(AUXILIARY):
                setattr(part, name, _WEIGHT)
        if hasattr(part, "output_router_logits"):
            part.output_router_logits = False


def without_dropout(model: nn.Module) -> None:
    """Sets the dropout modules whose rate does not come from the configuration to zero, in place."""
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.AlphaDropout):
            module.p = 0.0


def _parts(config: Any) -> Iterator[Any]:
    yield config
    for value in vars(config).values():
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)
