"""The variant's own forward, of a model as upstream loads it by default, called as an engine calls it."""

from typing import Any

import torch
from torch import nn

from runtime.qeff.facts import KVLayer, kv_layers
from runtime.verify.results import Check, Status
from runtime.verify.sizes import POSITIONS
from runtime.verify.stages import describe, judge, variant
from runtime.verify.subject import Subject

NAME = "plain key/value buffers in and out of a wide chunk"
STAGE = "kv"

_WIDTH = POSITIONS + 9
"""More columns than a table of positions has rows: padding must not ask for longer tables."""


def check_interface(subject: Subject) -> Check:
    """The first prompt in one call, padded to a wide chunk; attention is what upstream chose when the model was made.

    The updated buffers must come back as ``((key, value), ...)`` of the shapes given, although nothing is said of
    `use_cache`: they are the graph's retained state. And they are all of it: the call must leave parameters, buffers
    and numbers of the modules as they were, for those are constants of an exported graph. Raises what
    `stages.check_stages` raises.
    """
    with variant(subject, attention=None) as (wrapper, _):
        try:
            model = wrapper.model
            layers = kv_layers(model)
            before = _state(model)
            out, problem = _one_call(model, layers, subject.prompts.rows[0])
            after = _state(model)
        except Exception as failure:
            return Check(STAGE, NAME, Status.FAILED, message=describe(failure))
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    problem = problem or (f"the call changed {', '.join(changed[:3])}" if changed else "")
    if problem:
        return Check(STAGE, NAME, Status.FAILED, message=problem)
    logits = out.logits.float()
    return judge(STAGE, NAME, subject, (0,), logits.argmax(-1), logits)


@torch.no_grad()
def _one_call(model: Any, layers: tuple[KVLayer, ...], row: tuple[int, ...]) -> tuple[Any, str]:
    """The output after the prompt, and what is wrong with the buffers."""
    shapes = [layer.shapes(1, len(row)) for layer in layers]
    given = tuple(
        tuple(torch.zeros(shape, dtype=layer.torch_dtype) for shape in pair)
        for layer, pair in zip(layers, shapes, strict=True)
    )
    pads = _WIDTH - len(row)
    out = model(
        input_ids=torch.tensor([[*row, *[1] * pads]]),
        position_ids=torch.tensor([[*range(len(row)), *[-1] * pads]]),
        past_key_values=given,
    )
    returned = out.past_key_values
    if not isinstance(returned, tuple) or not all(isinstance(pair, tuple) for pair in returned):
        return out, f"past_key_values comes back as {type(returned).__name__}, not as a tuple of (key, value)"
    found = [tuple(tuple(buffer.shape) for buffer in pair) for pair in returned]
    return out, "" if found == shapes else f"buffers of shapes {shapes} come back as {found}"


def _state(model: nn.Module) -> dict[str, Any]:
    """What a module could remember: which tensors it has and how often they were written, and its plain attributes."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, bool | int | float | str):
                state[f"{name}.{key}"] = value
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        state.update({f"{name}.{key}": (id(tensor), tensor._version) for key, tensor in tensors})
    return state
