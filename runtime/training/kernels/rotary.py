"""Rotary embedding, half rotation, as one kernel for queries and keys.

Liger's kernel rotates in place: where the queries' memory is laid out as it reads it, it would overwrite what the
projection returned, and in the backward the gradient that it was given, unseen by autograd. Here the heads are copied
first (the function's caller still has them), and gradients unless they are nobody else's.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from runtime.training import kernels
from runtime.training.features import active
from runtime.training.kernels.ownership import writable

Rotation = Callable[..., tuple[Tensor, Tensor]]


def rotary(module: nn.Module, function: Rotation) -> Rotation:
    """`function`, or the kernel in its place when the feature ``rope`` is on.

    Args:
        module: the attention module, whose features decide.
        function: upstream's ``apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1)``, a half rotation.

    Returns:
        A function of the same call signature. Called with tensors (or arguments) that the kernel cannot take as
        upstream's function would, it calls that: other layouts, dtypes for which the function's result has another
        dtype or rounding than the kernel's, rows of one batch size and queries of another, rows with a gradient.
    """
    return functools.partial(_rotate, type(module).__name__, function) if active(module, "rope") else function


def _rotate(
    where: str, function: Rotation, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    unsqueeze_dim = kwargs.get("unsqueeze_dim", args[0] if args else 1)
    plain = len(args) + len(kwargs) <= 1 and unsqueeze_dim in (1, 2) and set(kwargs) <= {"unsqueeze_dim"}
    if not plain or not _laid_out(q, k, cos, sin, unsqueeze_dim):
        return function(q, k, cos, sin, *args, **kwargs)
    width = rotated_width(function, q.dtype, cos.dtype, q.shape[-1], cos.shape[-1])
    if width is None:
        how = f"{q.dtype} heads of {q.shape[-1]} and {cos.dtype} rows of {cos.shape[-1]} as the kernel does"
        kernels.not_used("rope", where, f"{function.__module__}.{function.__qualname__} does not rotate {how}")
    if width is None or not kernels.takes(q, k, cos, sin):
        return function(q, k, cos, sin, *args, **kwargs)
    if unsqueeze_dim == 2:
        q, k = q.transpose(1, 2), k.transpose(1, 2)
    q, k = _HalfRotation.apply(q, k, cos, sin, width)  # type: ignore[no-untyped-call]
    return (q.transpose(1, 2), k.transpose(1, 2)) if unsqueeze_dim == 2 else (q, k)


def _laid_out(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int) -> bool:
    """``q [B, Hq, S, D]``, ``k [B, Hk, S, D]`` (heads and sequence swapped for dim 2), ``cos`` and ``sin``
    ``[1 or B, S, W]``."""
    if q.ndim != 4 or k.ndim != 4 or cos.ndim != 3 or cos.shape != sin.shape:
        return False
    if q.dtype != k.dtype or cos.dtype != sin.dtype or cos.requires_grad or sin.requires_grad:
        return False
    batch, length, size = q.shape[0], q.shape[3 - unsqueeze_dim], q.shape[3]
    if (k.shape[0], k.shape[3 - unsqueeze_dim], k.shape[3]) != (batch, length, size):
        return False
    return cos.shape[0] in (1, batch) and cos.shape[1] == length and cos.shape[2] <= size


@functools.lru_cache(maxsize=256)
def rotated_width(function: Rotation, dtype: torch.dtype, row: torch.dtype, size: int, width: int) -> int | None:
    """How many leading elements of a head `function` rotates in the kernel's way, or None when it does not.

    The kernel computes in the rows' dtype and stores in the queries'. `function` is tried, once, on a few numbers: its
    result has to be that, to the bit. Rows are as wide as the rotated part, their second half repeating the first
    (the kernel reads the first only), or half as wide.

    Args:
        function: upstream's.
        dtype: of queries and keys.
        row: dtype of cos and sin.
        size: head size.
        width: of cos and sin.
    """
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 2, 3, size, generator=generator).to(dtype)
    k = torch.randn(1, 1, 3, size, generator=generator).to(dtype)
    for rotated in (width, 2 * width):
        if rotated % 2 or rotated > size:
            continue
        angles = torch.randn(1, 3, rotated // 2, generator=generator)
        if rotated == width:
            angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos().to(row), angles.sin().to(row)
        try:
            results: tuple[Tensor, ...] = function(q, k, cos, sin)
        except (RuntimeError, TypeError, ValueError, IndexError):
            continue
        expected = [half_rotation(x, cos, sin, rotated) for x in (q, k)]
        if len(results) == 2 and all(map(_same, results, expected)):
            return rotated
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def half_rotation(x: Tensor, cos: Tensor, sin: Tensor, width: int) -> Tensor:
    """The kernel's arithmetic in plain torch: ``x [B, H, S, D]``, rows ``[B, S, >= width / 2]`` -> ``[B, H, S, D]``."""
    half = width // 2
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    first, second = x[..., :half].to(cos.dtype), x[..., half:width].to(cos.dtype)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), x[..., width:]), dim=-1)


class _HalfRotation(Function):
    """Liger's rotation of memory of its own, and of gradients that nothing else can read."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, width: int) -> tuple[Tensor, Tensor]:
        from liger_kernel.ops.rope import rope_forward

        q, k, cos, sin = rope_forward(_own(q), _own(k), cos, sin, rotary_dim=width)
        ctx.save_for_backward(cos, sin)
        ctx.width = width
        return q, k

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        from liger_kernel.ops.rope import rope_backward

        cos, sin = ctx.saved_tensors
        d_q, d_k = rope_backward(*writable(grads, "gradients"), cos, sin, rotary_dim=ctx.width)
        return d_q, d_k, None, None, None


def _own(x: Tensor) -> Tensor:
    """``[B, H, S, D]`` in new memory laid out as ``[B, S, H, D]``, which is how the kernel reads it."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).transpose(1, 2)
