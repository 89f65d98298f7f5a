"""Cross entropy without the logits (fused with the head's product), and cross entropy by kernel.

The fused loss computes its gradients in the forward, in pieces of the vocabulary product, so logits never exist as a
whole. It is used in training only: an evaluation wants logits.

Where no token has a target and no ``num_items_in_batch`` is given, the losses here are 0 and so are their gradients;
upstream's mean over nothing is not a number.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers.loss.loss_utils import ForCausalLMLoss

from runtime.training import kernels
from runtime.training.features import active
from runtime.training.kernels.ownership import keeps_graph

IGNORE_INDEX = -100


def fused_loss(
    module: nn.Module,
    projection: nn.Module,
    hidden_states: Tensor,
    labels: Tensor | None,
    packing: Any,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The loss of ``softcap * tanh(projection(hidden_states) * scale / softcap)``, or None for upstream's way.

    None when the feature ``fused_linear_cross_entropy`` is off, outside of training, without labels, and where the
    kernel is not upstream's loss: see `mismatch`. Gradients are right under any gradient of the loss.

    Args:
        module: the model with the head, whose features decide.
        projection: the head, ``H -> V``, its bias included.
        hidden_states: ``[B, S, H]``, or ``[1, T, H]`` packed.
        labels: int64, as the model was called.
        packing: the packing; anything else means that every row is a sequence.
        scale: what logits are multiplied by, before the soft-cap. It is applied to the hidden states (and the bias).
        softcap: the soft-cap of the logits.
        kwargs: the forward's other keywords. ``num_items_in_batch``, ``ignore_index`` and ``shift_labels`` mean what
            they mean to ``ForCausalLMLoss``; the others are not looked at.

    Returns:
        A float32 scalar: the mean over all targets (of all ranks that share the row), or their sum divided by
        ``num_items_in_batch``.

    Raises:
        RuntimeError: kernels are compiled for a CUDA device and the tensors are on the CPU, or a label is outside of
            the vocabulary (on a device, from the device).
        ValueError: as many targets as hidden states are needed.
    """
    if labels is None or not module.training or not active(module, "fused_linear_cross_entropy"):
        return None
    reason = mismatch(module, projection)
    if reason is not None:
        kernels.not_used("fused_linear_cross_entropy", type(module).__name__, reason)
    if reason is not None or not _fit(projection, hidden_states):
        return None
    from runtime.training.loss import shifted

    targets = shifted(labels, packing, kwargs)  # takes shift_labels out of them
    if targets is None:
        targets = F.pad(labels, (0, 1), value=kwargs.get("ignore_index", IGNORE_INDEX))[..., 1:]
    targets = targets.reshape(-1).to(hidden_states.device)
    hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
    if targets.shape[0] != hidden_states.shape[0]:
        raise ValueError(f"{targets.shape[0]} targets for {hidden_states.shape[0]} hidden states")

    def head(hidden_states: Tensor) -> Tensor:
        weight, bias = cast(Tensor, projection.weight), cast("Tensor | None", projection.bias)
        if scale is not None and bias is not None:
            bias = bias * scale

        def summed(reduction: str, ignore_index: int) -> Tensor:
            in_range = (targets == ignore_index) | ((targets >= 0) & (targets < weight.shape[0]))
            torch._assert_async(in_range.all(), "a label is outside of the vocabulary")
            inputs = (hidden_states, weight, bias, targets, reduction, ignore_index, softcap)
            return cast(Tensor, _FusedLinearCrossEntropy.apply(*inputs))  # type: ignore[no-untyped-call]

        return _reduced(summed, targets, getattr(packing, "group", None), **kwargs)

    return _called(projection, head, hidden_states if scale is None else hidden_states * scale)


def mismatch(module: nn.Module, projection: nn.Module) -> str | None:
    """Why the fused loss cannot stand for the head and the model's loss, or None: what does not depend on the input."""
    if getattr(module, "loss_function", ForCausalLMLoss) is not ForCausalLMLoss:
        return "the model has a loss function of its own"
    if not (type(projection) is nn.Linear or (_is_sharded(projection) and isinstance(projection, nn.Linear))):
        return f"the head is a {type(projection).__name__}, not a Linear"
    if "forward" in vars(projection):
        return "the head's forward was replaced"
    if not _is_sharded(projection):
        if projection._forward_hooks or projection._forward_pre_hooks or projection._backward_hooks:
            return "the head has hooks, which would not be called"
        if isinstance(projection.weight, DTensor):
            return "the head's weight is distributed"
    return None


def liger_cross_entropy(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """``ForCausalLMLoss`` by kernel: the same arguments and, but for no targets at all, the same number.

    The kernel writes the gradient over the logits it is given; it is given a float32 copy, so the caller's stay.

    Args:
        logits: ``[..., V]``.
        labels: int64 ``[...]``, not yet shifted; not needed with `shift_labels`.
        vocab_size: ``V``.
        num_items_in_batch: what the sum is divided by; None for the mean.
        ignore_index: the label that is no target.
        shift_labels: int64 ``[...]``, shifted labels.
        kwargs: not looked at.

    Raises:
        RuntimeError: kernels are compiled for a CUDA device and the tensors are on the CPU, or a label is outside of
            the vocabulary.
    """
    if not kernels.takes(logits):
        loss: Tensor = ForCausalLMLoss(
            logits, labels, vocab_size, num_items_in_batch, ignore_index, shift_labels, **kwargs
        )
        return loss
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(logits.device)
    rows = logits.reshape(-1, vocab_size)
    rows = rows.float() if rows.dtype != torch.float32 else rows.clone()

    def summed(reduction: str, ignored: int) -> Tensor:
        return cast(Tensor, _CrossEntropy.apply(rows, targets, reduction, ignored))  # type: ignore[no-untyped-call]

    return _reduced(summed, targets, None, num_items_in_batch=num_items_in_batch, ignore_index=ignore_index)


def _fit(projection: nn.Module, hidden_states: Tensor) -> bool:
    weight = cast(Tensor, projection.weight)
    cast_later = torch.is_autocast_enabled(hidden_states.device.type) or _is_sharded(projection)
    return (cast_later or hidden_states.dtype == weight.dtype) and kernels.takes(hidden_states)


def _reduced(summed: Callable[[str, int], Tensor], targets: Tensor, group: Any, **kwargs: Any) -> Tensor:
    """The loss over all ranks, in upstream's two ways: the mean, or the sum over a number of items (if it has a value;
    the key alone, with None, means the mean)."""
    items: Any = kwargs.get("num_items_in_batch")
    ignore_index = kwargs.get("ignore_index", IGNORE_INDEX)
    if items is None and group is None:
        return summed("mean", ignore_index)
    loss = summed("sum", ignore_index)
    if group is not None:
        loss = group.total(loss)
        if items is None:
            items = group.total((targets != ignore_index).sum().float()).clamp(min=1)
    return loss / (items.to(loss.device) if isinstance(items, Tensor) else items)


def _is_sharded(projection: nn.Module) -> bool:
    """Whether the head is sharded by itself (FSDP2): its weight is whole only inside of its own call."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(projection, FSDPModule)


def _called(projection: nn.Module, head: Callable[[Tensor], Tensor], hidden_states: Tensor) -> Tensor:
    if not _is_sharded(projection):
        return head(hidden_states)
    projection.forward = head
    try:
        loss: Tensor = projection(hidden_states)
    finally:
        del projection.forward
    return loss


class _FusedLinearCrossEntropy(Function):
    """Liger's, for every combination of what needs a gradient, and for graphs that are kept.

    Liger's own has no gradient for a head above hidden states that need none (a frozen backbone), and scales its saved
    gradients in place, so that a second backward is wrong.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        reduction: str,
        ignore_index: int,
        softcap: float | None,
    ) -> Tensor:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_forward

        loss, _, _, _, *gradients = fused_linear_cross_entropy_forward(
            _input=hidden_states,
            weight=weight,
            target=targets,
            bias=bias,
            ignore_index=ignore_index,
            reduction=reduction,
            softcap=softcap,
            compute_gradients=any(ctx.needs_input_grad[:3]),
            weight_requires_grad=ctx.needs_input_grad[1],
        )
        ctx.save_for_backward(*gradients)
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from liger_kernel.ops.fused_linear_cross_entropy import fused_linear_cross_entropy_backward

        gradients = ctx.saved_tensors
        if keeps_graph():
            gradients = [g if g is None else g.clone() for g in gradients]
        gradients = fused_linear_cross_entropy_backward(grads[0], *gradients)
        wanted = ctx.needs_input_grad[:3]
        return (*(g if needed else None for g, needed in zip(gradients, wanted, strict=True)), None, None, None, None)


class _CrossEntropy(Function):
    """Liger's on logits of its own, for graphs that are kept, too."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, reduction: str, ignore_index: int) -> Tensor:
        from liger_kernel.ops.cross_entropy import cross_entropy_forward

        loss, _, _, _, gradient = cross_entropy_forward(
            logits, targets, None, ignore_index, 0.0, 0.0, reduction, None, False
        )
        ctx.save_for_backward(gradient.detach())
        result: Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        from liger_kernel.ops.cross_entropy import cross_entropy_backward

        (gradient,) = ctx.saved_tensors
        return cross_entropy_backward(gradient.clone() if keeps_graph() else gradient, grads[0]), None, None, None
