"""Which memory a backward may write over.

Some of Liger's backward kernels write gradients over what they read. Autograd does not see that, so it is right only
for memory that nothing else can read any more: no other graph node, no view, no hook, nobody who kept a reference.
Here that is counted, and everything else is copied first. The copies of one MLP's gate and up cost about as much time
as the kernel itself, and as much memory as the gradients.
"""

import functools
import sys
import threading
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

Counts = tuple[int, int, int, int]


def writable(tensors: Sequence[Tensor], source: str) -> list[Tensor]:
    """The tensors, or copies of those that something else may still read.

    To be called in a ``backward`` with nothing but the tensors' own tuple holding them.

    Args:
        tensors: ``ctx.saved_tensors`` (inputs as they were, or new tensors that are no results) or the gradients.
        source: ``"saved"`` or ``"gradients"``.
    """
    if keeps_graph() or not _countable():
        return [tensor.clone() for tensor in tensors]
    alone = [counts in _alone()[source] for counts in _each(tensors)]
    return [tensor if mine else tensor.clone() for tensor, mine in zip(tensors, alone, strict=True)]


def keeps_graph() -> bool:
    """Whether the running backward leaves the graph, and what it saved, for another one (``retain_graph``)."""
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if keeps is None else bool(keeps())


def _countable() -> bool:
    return hasattr(torch._C, "_storage_Use_Count") and hasattr(Tensor, "_use_count") and hasattr(sys, "getrefcount")


def _each(tensors: Sequence[Tensor]) -> list[Counts]:
    return [_counts(tensor) for tensor in tensors]


def _counts(tensor: Tensor) -> Counts:
    """References to the tensor, to its memory (the base of a view, which is one, left out), to that base, and from
    Python."""
    base = tensor._base
    memory = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    held = 0 if base is None else base._use_count()  # type: ignore[attr-defined]
    return tensor._use_count(), memory - (base is not None), held, sys.getrefcount(tensor)  # type: ignore[attr-defined]


@functools.cache
def _alone() -> dict[str, frozenset[Counts]]:
    """The counts of tensors that nothing else holds, as this torch and this Python count.

    They are measured, on throwaway tensors and in a thread of their own: it has no running backward, no mode and no
    default device of the caller's.
    """
    seen: dict[str, set[Counts]] = {"saved": set(), "gradients": set()}
    thread = threading.Thread(target=_measure, args=(seen,))
    thread.start()
    thread.join()
    return {source: frozenset(counts) for source, counts in seen.items()}


def _measure(seen: dict[str, set[Counts]]) -> None:
    """For inputs (a tensor and a view) and a tensor of the forward's own, saved and recomputed by a checkpoint."""

    def run(x: Tensor) -> Tensor:
        return cast(Tensor, _Measure.apply(x * 1, (x * 1).view(2, 1), seen))  # type: ignore[no-untyped-call]

    x = torch.ones(2, 1, requires_grad=True)
    torch.autograd.grad(run(x) * 1, x, torch.ones(2, 1))
    torch.autograd.grad(run(x).view(1, 2) * 1, x, torch.ones(1, 2))
    torch.autograd.grad(checkpoint(run, x, use_reentrant=False) * 1, x, torch.ones(2, 1))


class _Measure(Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, seen: dict[str, set[Counts]]) -> Tensor:
        ctx.save_for_backward(a, b, a.clone())
        ctx.seen = seen
        return a + b

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        ctx.seen["saved"].update(_each(ctx.saved_tensors))
        ctx.seen["gradients"].update(_each(grads))
        return torch.ones(2, 1), torch.ones(2, 1), None
