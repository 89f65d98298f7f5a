"""What is known about a tensor while a graph is recorded."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def values_are_known() -> bool:
    """False while a graph is recorded: sizes and contents then stand for any call's, so checks on them say nothing."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined,no-untyped-call]


def static_size(tensor: Tensor, dim: int) -> int:
    """A size as a number, also while tracing, where it becomes a constant of the graph.

    Only for sizes that are the same in every call, such as heads, or to compare two sizes; a batch, sequence or context
    length must not enter the graph this way.
    """
    with constants_are_meant():
        return int(tensor.shape[dim])


def static_indices(indices: Sequence[int], device: torch.device) -> Tensor:
    """Indices that are the same in every call, as an int64 tensor; a constant of the graph while tracing."""
    with constants_are_meant():
        return torch.tensor(indices, dtype=torch.int64, device=device)


@contextmanager
def constants_are_meant() -> Iterator[None]:
    """Silences the tracer's warnings about tensors that become constants of the graph."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield
