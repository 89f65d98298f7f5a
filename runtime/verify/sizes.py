"""The sizes of a tiny model, by the name a configuration gives to a quantity.

Names are upstream's general vocabulary (`hidden_size`, `num_key_value_heads`, ...), never those of one family: a
class that calls a quantity otherwise is usually understood through its own `attribute_map`. The numbers are chosen so
that mistakes show:

* no width is a power of two times another by accident: hidden 96, heads x head_dim 144, MLP 80 (so 2 x 80 is not 96
  or 144), expert MLP 40; a transposed or wrongly split projection cannot fit by luck;
* 6 query heads over 2 key/value heads, so a wrong head order in grouped attention shows;
* head_dim 24: the rotated part is even for partial rotary factors 1, 3/4, 1/2 and 1/4;
* every window and chunk (7) is shorter than the longest prompt that verification uses, and no multiple of its chunks;
* positions (128) are more than any prompt plus its decode steps.
"""

from collections.abc import Mapping
from typing import Final

HIDDEN: Final = 96
HEADS: Final = 6
KV_HEADS: Final = 2
HEAD_DIM: Final = 24
INTERMEDIATE: Final = 80
VOCAB: Final = 131
POSITIONS: Final = 128
WINDOW: Final = 7
EXPERTS: Final = 6
TOP_K: Final = 2

FIRST_FREE_TOKEN: Final = 20
"""Prompts use ids from here on; special tokens lie below."""

_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_layer")
_CHOICES: Final = ("num_experts_per_tok", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")

_GROUPS: Final[tuple[tuple[int, tuple[str, ...]], ...]] = (
    (
        HIDDEN,
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "emb_dim",
            "embedding_dim",
            "lru_width",
            "hidden_size_global",
            "input_size",
        ),
    ),
    (64, ("embedding_size", "input_embedding_size", "cross_attention_hidden_size")),
    (
        56,
        (
            "output_embedding_size",
            "shared_expert_intermediate_size",
            "shared_intermediate_size",
            "moe_shared_expert_intermediate_size",
            "pronunciation_embed_dim",
            "shape_embed_dim",
        ),
    ),
    (
        INTERMEDIATE,
        (
            "intermediate_size",
            "intermediate_size_mlp",
            "ffn_dim",
            "n_inner",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "dff",
            "d_inner",
            "dim_ff",
            "feed_forward_size",
            "ffn_hidden_size",
            "mlp_dim",
        ),
    ),
    (40, ("moe_intermediate_size", "expert_ffn_hidden_size", "moe_latent_size")),
    (
        HEADS,
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "attention_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
            "num_decoder_attention_heads",
            "num_encoder_attention_heads",
        ),
    ),
    (KV_HEADS, ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "num_global_key_value_heads")),
    (HEAD_DIM, ("head_dim", "kv_channels", "d_head", "dim_head", "attention_head_size", "attention_head_dim")),
    (32, ("global_head_dim",)),
    (36, ("q_lora_rank",)),
    (32, ("kv_lora_rank",)),
    (8, ("qk_rope_head_dim", "index_n_heads")),
    (16, ("qk_nope_head_dim",)),
    (24, ("qk_head_dim", "index_head_dim")),
    (20, ("v_head_dim",)),
    (8, ("rotary_dim",)),
    (8, ("laurel_rank", "adapter_rank")),
    (12, ("hidden_size_per_layer_input",)),
    (
        VOCAB,
        (
            "vocab_size",
            "vocab_size_per_layer_input",
            "decoder_vocab_size",
            "audio_vocab_size",
            "pronunciation_vocab_size",
            "shape_vocab_size",
            "encoder_hash_byte_group_vocab",
        ),
    ),
    (
        POSITIONS,
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "max_target_positions",
            "max_source_positions",
            "context_length",
            "seq_length",
        ),
    ),
    (
        WINDOW,
        (
            "sliding_window",
            "attention_chunk_size",
            "window_size",
            "attention_window_size",
            "keep_window_size",
            "index_topk",
        ),
    ),
    (2 * WINDOW, ("local_attention",)),
    (EXPERTS, _EXPERTS),
    (TOP_K, _CHOICES),
    (2, ("n_shared_experts", "n_group", "n_groups", "zero_expert_num")),
    (1, ("topk_group",)),
    (1, ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")),
    (2, ("max_window_layers", "num_kv_shared_layers")),
    # state-space and linear-attention quantities
    (8, ("state_size", "mamba_d_state", "ssm_state_size", "chunk_size", "mamba_chunk_size", "block_size")),
    (12, ("mamba_n_heads", "mamba_num_heads")),
    (16, ("mamba_head_dim",)),
    (192, ("mamba_d_ssm",)),
    (2, ("linear_num_key_heads",)),
    (4, ("linear_num_value_heads",)),
    (12, ("linear_key_head_dim",)),
    (20, ("linear_value_head_dim",)),
    (8, ("block_multiple_of",)),
    # images and sound beside the text: as small as they go
    (28, ("image_size",)),
    (14, ("patch_size",)),
    (3, ("num_channels",)),
    (24, ("output_channels", "position_embedding_size")),
    (24, ("ext_pw_out_channel", "depthwise_separable_out_channel", "nemo_conv_channels")),
)

SIZES: Final[Mapping[str, int]] = {name: value for value, names in _GROUPS for name in names}

EXPERT_COUNTS: Final = frozenset(_EXPERTS)
ROUTING: Final = EXPERT_COUNTS | frozenset(_CHOICES)
"""Fields that are set where the default is a single expert: nothing is routed there, and any routing passes."""

LAYER_COUNTS: Final = frozenset(
    {
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "decoder_layers",
        "encoder_layers",
        "num_decoder_layers",
        "num_encoder_layers",
        "num_blocks",
    }
)
"""Fields that count layers; their value is found per class (`factory.layer_count`)."""

SET_EVEN_IF_UNSET: Final = frozenset(
    {
        "num_key_value_heads",
        "num_kv_heads",
        "head_dim",
        "intermediate_size",
        "n_inner",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts_per_tok",
    }
)
"""Fields set even where the default is None: the derived value (MHA, hidden / heads, 4 x hidden) hides errors, or
there is none.
"""

FIXED: Final[Mapping[str, bool | float]] = {
    "is_decoder": True,  # without it an encoder attends both ways, which is no causal LM
    "use_mamba_kernels": False,  # device kernels; the plain path is the reference
    # Attention scores as in trained models: not all alike (a large scalar), nor a single one that counts (1.0).
    "query_pre_attn_scalar": HEAD_DIM,
    "attention_multiplier": 0.25,
}
"""Fields set to a value of their own wherever they exist."""
