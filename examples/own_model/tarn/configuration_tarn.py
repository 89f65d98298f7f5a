# Copyright 2026 The Tarn authors.
#
# Permission to use, copy, modify, and/or distribute this software for any
# purpose with or without fee is hereby granted.
"""Configuration of the Tarn language model."""

from transformers import PreTrainedConfig


class TarnConfig(PreTrainedConfig):
    """Fields of a Tarn model.

    Args:
        partial_rotary_factor: the part of each head that is rotated.
        sliding_window: how many tokens the layers called "sliding_attention" look back.
        layer_types: "full_attention" or "sliding_attention" for each layer; every second one slides by default.
        query_scale: multiplied with the scores; one over the root of ``head_dim`` by default.
    """

    model_type = "tarn"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 1024,
        intermediate_size: int = 2816,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 4,
        head_dim: int = 64,
        hidden_act: str = "silu",
        max_position_embeddings: int = 4096,
        initializer_range: float = 0.02,
        rms_norm_eps: float = 1e-6,
        use_cache: bool = True,
        tie_word_embeddings: bool = True,
        rope_parameters: dict | None = None,
        partial_rotary_factor: float = 0.5,
        sliding_window: int | None = 512,
        layer_types: list[str] | None = None,
        query_scale: float | None = None,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.use_cache = use_cache
        self.rope_parameters = rope_parameters
        self.partial_rotary_factor = partial_rotary_factor
        self.sliding_window = sliding_window
        self.query_scale = query_scale
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.tie_word_embeddings = tie_word_embeddings
        if layer_types is None:
            layer_types = ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(num_hidden_layers)]
        self.layer_types = layer_types
        super().__init__(**kwargs)
