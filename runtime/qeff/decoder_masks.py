"""Masks of models that are encoders or decoders by configuration."""

from typing import Any

from torch import Tensor

from runtime.qeff.masks import create_causal_mask


def create_decoder_mask(
    config: Any,
    attention_mask: Tensor | None,
    *,
    past_key_values: Any,
    position_ids: Tensor | None,
    comp_ctx_lengths: Tensor | None = None,
) -> Tensor:
    """The causal mask of a model with ``config.is_decoder``.

    Source: ``ModuleUtilsMixin.get_extended_attention_mask``, which makes a causal mask for a decoder only.

    Args:
        config: the model's config.
        attention_mask: must be None.
        past_key_values: cache whose ``get_seq_length()`` is the buffer length.
        position_ids: ``[B, S]`` integers, -1 for a pad.
        comp_ctx_lengths: None, or a tensor whose last dimension's length is ``T``.
    Returns:
        bool ``[B, 1, S, T]``, True where hidden.
    Raises:
        ValueError: the model is no decoder, or an attention mask is given.
    """
    if not getattr(config, "is_decoder", False):
        no_bidirectional_mask(config)
    return create_causal_mask(
        config,
        None,  # type: ignore[arg-type]  # inputs_embeds, which it does not read
        attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
        comp_ctx_lengths=comp_ctx_lengths,
    )


def no_bidirectional_mask(config: Any, **given: Any) -> Tensor:
    """Stands where upstream would let tokens see later ones.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"{type(config).__name__}.is_decoder is {getattr(config, 'is_decoder', None)}: the model would attend both "
        "ways, which a key/value cache cannot serve; load it with is_decoder=True"
    )
