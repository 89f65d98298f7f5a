"""What the arguments of PyTorch's own layers and functions mean: sizes, flags, numbers, shapes.

Knowledge of PyTorch's interface, not of any model. A call that is not listed is "unknown" to whoever asks, which is the
careful answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto


class Meaning(Enum):
    """What an argument decides about a layer."""

    SIZE = auto()  # the shape of a weight, or an index into it
    FLAG = auto()  # whether the layer has a part
    NUMBER = auto()  # a number in the layer's arithmetic
    TRAINING = auto()  # nothing at inference
    OTHER = auto()


_LAYERS: Mapping[str, tuple[str, ...]] = {
    "Linear": ("in_features", "out_features", "bias"),
    "Embedding": ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type"),
    "LayerNorm": ("normalized_shape", "eps", "elementwise_affine", "bias"),
    "RMSNorm": ("normalized_shape", "eps", "elementwise_affine"),
    "GroupNorm": ("num_groups", "num_channels", "eps", "affine"),
    "Conv1d": (
        "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias", "padding_mode",
    ),
    "Dropout": ("p", "inplace"),
}  # fmt: skip
"""Positional parameters of the layers that language models build."""

_PARAMETERS: Mapping[str, Meaning] = {
    **dict.fromkeys(
        (
            "in_features", "out_features", "num_embeddings", "embedding_dim", "padding_idx", "normalized_shape",
            "num_channels", "in_channels", "out_channels", "kernel_size", "padding",
        ),
        Meaning.SIZE,
    ),
    **dict.fromkeys(("bias", "elementwise_affine", "affine", "batch_first"), Meaning.FLAG),
    **dict.fromkeys(("eps", "negative_slope", "alpha", "beta", "threshold", "max_norm", "norm_type"), Meaning.NUMBER),
    **dict.fromkeys(("p", "inplace", "momentum"), Meaning.TRAINING),
}  # fmt: skip

_SHAPING = frozenset(
    {
        "arange", "as_strided", "broadcast_to", "chunk", "diagonal", "empty", "expand", "eye", "flatten", "full",
        "gather", "index_select", "linspace", "movedim", "narrow", "new_empty", "new_full", "new_ones", "new_zeros",
        "ones", "pad", "permute", "rand", "randn", "repeat", "repeat_interleave", "reshape", "roll", "select",
        "size", "split", "split_with_sizes", "squeeze", "tensor_split", "tile", "transpose", "tril", "triu",
        "unflatten", "unfold", "unsqueeze", "view", "zeros",
    }
)  # fmt: skip
"""Functions and tensor methods whose numeric arguments are sizes, dimensions or offsets."""

_VALUES = frozenset({"as_tensor", "scalar_tensor", "tensor"})


def layer_argument(layer: str, position: int | None, keyword: str | None) -> Meaning:
    """The meaning of an argument of `nn.<layer>(...)`, given by position or by keyword."""
    if keyword is None and position is not None:
        names = _LAYERS.get(layer)
        if names is None or position >= len(names):
            return Meaning.SIZE if names is None else Meaning.OTHER
        keyword = names[position]
    return _PARAMETERS.get(keyword or "", Meaning.OTHER)


def is_shaping(function: str) -> bool:
    """Whether a torch function or tensor method takes its numeric arguments as sizes, dimensions or offsets."""
    return function in _SHAPING


def keeps_value(function: str) -> bool:
    """Whether a torch function only wraps its argument in a tensor."""
    return function in _VALUES
