"""Random weights that make a tiny model tell tokens, positions and heads apart."""

import math

import torch
from torch import nn

_GAIN = 2.0
_EMBEDDING = 0.04
_NOISE = 0.2


def spread(model: nn.Module, seed: int) -> None:
    """Overwrites the model's weights in place, the same for the same seed and architecture.

    Matrices (two and more dimensions) become normal with a deviation of 2 / sqrt(mean of the last two sizes),
    embeddings with 0.04, so that the layers outweigh what the residual stream carries past them: with upstream's
    usual 0.02 all logits are nearly equal and any mistake stays below the tolerance. Vectors (norm weights, biases,
    decay rates, attention sinks) keep the value that upstream's initialisation gave them, plus noise, so that no bias
    is zero and no norm weight is 1. Saved floating-point buffers, such as router corrections, are treated as vectors;
    buffers that are not saved (rotary frequencies, masks) are derived values and stay.
    """
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
            if parameter.dim() >= 2:
                deviation = (
                    _EMBEDDING if id(parameter) in embeddings else _GAIN / math.sqrt(sum(parameter.shape[-2:]) / 2)
                )
                parameter.normal_(0.0, deviation, generator=generator)
            else:
                _add_noise(parameter, generator)
        saved = set(model.state_dict(keep_vars=True))
        for name, buffer in sorted(model.named_buffers(), key=lambda item: item[0]):
            if name in saved and buffer.is_floating_point() and buffer.numel() > 0:
                before = buffer.clone()
                _add_noise(buffer, generator)
                buffer.copy_(before + (buffer - before).abs())


def _add_noise(tensor: torch.Tensor, generator: torch.Generator) -> None:
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32) * _NOISE
    tensor.add_(noise.to(tensor.dtype))
