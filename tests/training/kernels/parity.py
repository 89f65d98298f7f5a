"""Results and gradients of two ways to compute the same."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Way = Callable[[], Tensor | tuple[Tensor, ...]]


def feature(module: torch.nn.Module, *features: str) -> torch.nn.Module:
    module.regraft_features = frozenset(features)
    return module


def results_and_gradients(way: Way, leaves: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """What `way` returns, then the gradients of all `leaves` under random, not uniform, gradients of the results."""
    results = way()
    results = results if isinstance(results, tuple) else (results,)
    generator = torch.Generator().manual_seed(seed)
    upstream = [torch.randn(r.shape, generator=generator).to(r.dtype) for r in results]
    return [r.detach() for r in results] + list(torch.autograd.grad(results, leaves, upstream))


def error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference, relative to the largest number of the tensor that it is in (at least 1)."""
    assert [(f.shape, f.dtype) for f in found] == [(e.shape, e.dtype) for e in expected]
    pairs = [(f.double(), e.double()) for f, e in zip(found, expected, strict=True)]
    return max(((f - e).abs().max() / e.abs().max().clamp(min=1)).item() for f, e in pairs)
