"""What a model with packed input gives back."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from runtime.training.packing import Packing

ADDED = ("seq_lens", "word_idx")


def with_packing(output: Any, packing: Any) -> Any:
    """A backbone's output with the places of its tokens.

    Args:
        output: a ``ModelOutput``; its hidden states are ``[1, T, H]``.
        packing: the packing; without one the output is returned as it came.
    Returns:
        a subclass of the output's class with ``seq_lens``, the int32 ``[n + 1]`` of ``cu_seqlens``, and ``word_idx``,
        int64 ``[T]``, the places of the packed tokens in the caller's flattened ``[B * S]``.
    """
    if not isinstance(packing, Packing) or not isinstance(output, ModelOutput):
        return output
    values = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    output_class: Any = type(output)
    return _packed_class(output_class)(**values, seq_lens=packing.cu_seqlens, word_idx=packing.word_idx)


@cache
def _packed_class(output_class: Any) -> Any:
    """The class with the two further fields; one for each class, so that ``torch.utils._pytree`` knows it once."""
    optional_tensor: Any = Tensor | None
    return dataclasses.make_dataclass(
        output_class.__name__ + "WithPacking",
        [(name, optional_tensor, dataclasses.field(default=None)) for name in ADDED],
        bases=(output_class,),
        namespace={
            "__reduce__": _reduced,
            "to_tuple": _to_tuple,
            "__doc__": output_class.__doc__,
            "__module__": __name__,
        },
    )


def _to_tuple(self: Any) -> tuple[Any, ...]:
    """As long as upstream's: callers slice it."""
    return tuple(self[name] for name in self if name not in ADDED)


def _reduced(self: Any) -> tuple[Any, ...]:
    """Pickled by the class it extends: the class itself is made on demand and cannot be imported."""
    values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    return _restored, (type(self).__mro__[1], values)


def _restored(output_class: Any, values: dict[str, Any]) -> Any:
    return _packed_class(output_class)(**values)


def unpacked(module: nn.Module, logits: Tensor | None, packing: Any) -> Tensor | None:
    """Logits in the layout that the caller expects.

    ``logits_layout="packed"`` or ``"padded"`` in the call decides; else they stay packed in training, where only the
    loss reads them, and get the input's shape in evaluation. Where ranks share the row, they stay with them in training
    (``[1, T/P, V]``), and otherwise every rank gets them all.

    Args:
        module: the model; its training mode is read.
        logits: ``[1, T, V]`` or None.
        packing: the packing; without one the logits are returned as they came.
    Returns:
        ``[1, T, V]``, or ``[B, S, V]`` with zeros at the padding.
    Raises:
        ValueError: the logits are not one per packed token.
    """
    if logits is None or not isinstance(packing, Packing):
        return logits
    layout = packing.logits_layout or ("packed" if module.training else "padded")
    if packing.group is not None:
        if module.training and packing.logits_layout is None:
            return logits
        logits = packing.group.whole(logits, packing.total)
    if logits.shape[1] != packing.total:
        raise ValueError(
            f"rmpad: {packing.total} packed tokens, but logits of {logits.shape[1]}; logits_to_keep counts from the "
            "end of a padded row and cannot go with packed input"
        )
    return packing.scatter(logits) if layout == "padded" else logits


def of_all_tokens(function: Callable[..., Any], attention_mask: Any) -> Callable[..., Any]:
    """A loss over all tokens' router logits, to be called as upstream calls it.

    Every token of a packed row is real, so the function gets no mask. Such a loss is not the sum of what it is of
    parts of the tokens; where ranks share the row, each of them gets the router logits of all.

    Args:
        function: upstream's, of router logits ``[T, E]`` per layer, of ``attention_mask``, and whatever else.
        attention_mask: the packing; without one the function is returned as it came.
    Returns:
        the function, for arguments as upstream's forward has them. It raises ValueError for a tuple of tensors that are
        not one row per token.
    """
    if not isinstance(attention_mask, Packing):
        return function

    def called(*args: Any, **kwargs: Any) -> Any:
        return function(
            *(_of_all_tokens(value, attention_mask) for value in args),
            **{name: _of_all_tokens(value, attention_mask) for name, value in kwargs.items()},
        )

    return called


def _of_all_tokens(value: Any, packing: Packing) -> Any:
    if value is packing:
        return None
    ranks = packing.group
    if ranks is None or not (isinstance(value, tuple) and all(isinstance(part, Tensor) for part in value)):
        return value
    rows = ranks.share(packing.total)
    for part in value:
        if part.shape[0] != rows:
            raise ValueError(f"sequence parallelism: router logits are {list(part.shape)}, this rank has {rows} tokens")
    return tuple(ranks.whole(part, packing.total, dim=0) for part in value)
