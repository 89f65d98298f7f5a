"""How far a variant's numbers are from upstream's."""

from collections.abc import Mapping, Sequence
from typing import Final

import torch

TOLERANCE: Final = 1e-4
"""Largest error of logits, losses and gradients, as defined below, in fp32."""
ISOLATION: Final = 1e-6
"""Largest error of logits of a sequence when another one changes: the same computation but for the grouping of tokens
in matrix products.
"""
TRAINED: Final = 1e-3
"""Largest error of what training adds to the parameters, as `tensors_error`. Adam divides each number's gradient by
its own size, which makes as much of the rounding error of a small gradient as of that of a large one.
"""

_FLOOR: Final = 1e-3


def logits_error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """max |logit - upstream's| / range of upstream's logits, over all tokens of all sequences.

    One [length, vocab] per sequence. What is no number counts as infinite; other shapes raise ValueError.
    """
    span = float(max(one.max() for one in expected)) - float(min(one.min() for one in expected))
    return max(_distance(mine, theirs) for mine, theirs in zip(found, expected, strict=True)) / span


def loss_error(found: torch.Tensor, expected: float) -> float:
    """|loss - upstream's| / |upstream's|. Raises ValueError if it is not one number."""
    if found.numel() != 1:
        raise ValueError(f"the loss has shape {list(found.shape)}")
    return _number(abs(float(found) - expected) / max(abs(expected), 1e-12))


def tensors_error(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> tuple[float, str]:
    """The largest error of a tensor, and the name of the tensor.

    The error of one is |tensor - upstream's| / max(|upstream's|, floor), in the Euclidean norm. The floor is 1e-3 of
    the largest norm among upstream's tensors: some gradients (of the bias of attention keys, of experts that no token
    reached) are zero but for rounding, and have no relative error. With a tolerance of 1e-4 a tensor that is wrong
    altogether is still seen when it is 1e-7 of the largest, which is where fp32 ends. Raises ValueError for other
    names or shapes.
    """
    if found.keys() != expected.keys():
        raise ValueError(f"tensors {sorted(found.keys() ^ expected.keys())[:3]} are not on both sides")
    norms = {name: float(tensor.norm()) for name, tensor in expected.items()}
    floor = _FLOOR * max(norms.values())
    if floor == 0.0:
        raise ValueError("upstream's tensors are all zero")
    worst = (0.0, "")
    for name, theirs in expected.items():
        if found[name].shape != theirs.shape:
            raise ValueError(f"{name} is {list(found[name].shape)}, upstream's {list(theirs.shape)}")
        distance = _number(float((found[name] - theirs).norm()))
        worst = max(worst, (distance / max(norms[name], floor), name))
    return worst


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"logits of a sequence are {list(found.shape)}, upstream's {list(expected.shape)}")
    return _number(float((found.float() - expected).abs().max()))


def _number(value: float) -> float:
    return value if value == value else float("inf")
