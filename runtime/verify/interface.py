"""The variant's own forward, as an engine calls it: plain buffers in, plain buffers out."""

from typing import Any

import torch

from runtime.qeff.facts import kv_layers
from runtime.verify.results import Check, Status
from runtime.verify.stages import describe, judge, variant
from runtime.verify.subject import Subject

NAME = "plain key/value buffers in and out"
STAGE = "kv"


def check_interface(subject: Subject) -> Check:
    """The first prompt in one call. The updated buffers must come back as ``((key, value), ...)`` of the shapes given,
    although nothing was said of `use_cache`: they are the graph's retained state. Raises what
    `stages.check_stages` raises.
    """
    with variant(subject) as (wrapper, _):
        try:
            tokens, logits, problem = _one_call(wrapper.model, subject.prompts.rows[0])
        except Exception as failure:
            return Check(STAGE, NAME, Status.FAILED, message=describe(failure))
    if problem:
        return Check(STAGE, NAME, Status.FAILED, message=problem)
    return judge(STAGE, NAME, subject, (0,), tokens, logits)


@torch.no_grad()
def _one_call(model: Any, row: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Tokens [1, 1] and logits [1, 1, vocab] after the prompt, and what is wrong with the buffers."""
    given = [
        tuple(torch.zeros(shape, dtype=layer.torch_dtype) for shape in layer.shapes(1, len(row)))
        for layer in kv_layers(model)
    ]
    out = model(
        input_ids=torch.tensor([row]), position_ids=torch.arange(len(row))[None], past_key_values=tuple(given)
    )
    logits = out.logits.float()
    return logits.argmax(-1), logits, _wrong(out.past_key_values, [[b.shape for b in pair] for pair in given])


def _wrong(returned: Any, shapes: list[list[torch.Size]]) -> str:
    if not isinstance(returned, tuple) or not all(isinstance(pair, tuple) for pair in returned):
        return f"past_key_values comes back as {type(returned).__name__}, not as a tuple of (key, value)"
    found = [[buffer.shape for buffer in pair] for pair in returned]
    return "" if found == shapes else f"buffers of shapes {shapes} come back as {found}"
