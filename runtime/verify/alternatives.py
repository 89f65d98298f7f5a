"""Other values for configuration fields: data for `cases`, by the general names that upstream uses across families."""

from collections.abc import Mapping
from typing import Any, Final

from runtime.verify.sizes import EXPERTS, HEAD_DIM, HEADS, TOP_K, WINDOW

SOFT_CAP: Final = 5.0
"""Low enough that capping changes the logits of a tiny model far more than any tolerance."""

OTHER_VALUES: Final[Mapping[str, tuple[Any, ...]]] = {
    # attention
    "num_key_value_heads": (HEADS, 1),
    "num_kv_heads": (HEADS, 1),
    "num_global_key_value_heads": (1,),
    "head_dim": (16, HEAD_DIM),
    "query_pre_attn_scalar": (100,),
    "logit_scale": (0.5,),
    "clip_qkv": (1.0,),
    "max_window_layers": (1,),
    "no_rope_layer_interval": (2,),
    "sliding_window_pattern": (2,),
    "global_attn_every_n_layers": (2,),
    "floor_scale": (4,),
    "attn_scale": (0.5,),
    "rotary_dim": (16,),
    "v_head_dim": (16,),
    # mixtures of experts
    "num_experts_per_tok": (1, TOP_K),
    "top_k_experts": (1, TOP_K),
    "moe_topk": (1, TOP_K),
    "moe_k": (1, TOP_K),
    "n_group": (2,),
    "topk_group": (2,),
    "topk_method": ("group_limited_greedy", "noaux_tc"),
    "scoring_func": ("softmax", "sigmoid"),
    "score_func": ("softmax", "sigmoid"),
    "first_k_dense_replace": (0, 2),
    "num_dense_layers": (0, 2),
    "n_shared_experts": (1, 0),
    "num_shared_experts": (1, 0),
    "decoder_sparse_step": (2,),
    "interleave_moe_layer_step": (2,),
    "moe_layer_interval": (2,),
    "moe_layer_start_index": (0,),
    "moe_layer_end_index": (1,),
    "shared_intermediate_size": (0, 56),
    "routed_scaling_factor": (1.7,),
    "route_scale": (1.7,),
    "moe_norm_min": (0.9,),
    "num_kv_shared_layers": (0, 2),
    "hidden_size_per_layer_input": (0,),
    # learned positions and norms
    "position_embedding_type": ("rope", "nope"),
    "norm_type": ("layer_norm", "rms_norm"),
}
"""Values tried besides the tiny configuration's own. What upstream refuses is reported as that."""

COMPANIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "use_sliding_window": {"sliding_window": WINDOW, "max_window_layers": 1},
    "sliding_window": {"use_sliding_window": True, "max_window_layers": 1},
    "max_window_layers": {"use_sliding_window": True, "sliding_window": WINDOW},
    "layer_types": {"use_sliding_window": True, "sliding_window": WINDOW},
    "n_group": {"topk_group": 1},
    "topk_group": {"n_group": 3},
    "topk_method": {"n_group": 2, "topk_group": 1},
    "num_global_key_value_heads": {"attention_k_eq_v": True},
    "enable_moe_block": {"num_experts": EXPERTS, "top_k_experts": TOP_K, "moe_intermediate_size": 40},
}
"""What must be set along with a field for its other value to have an effect; applied where the class has these
fields.
"""

NOT_VARIED: Final[Mapping[str, str]] = {
    "use_cache": "the variants always use their cache",
    "output_attentions": "extra outputs, not computation",
    "output_hidden_states": "extra outputs, not computation",
    "output_router_logits": "extra outputs, not computation",
    "return_dict": "form of the output, not computation",
    "use_return_dict": "form of the output, not computation",
    "router_aux_loss_coef": "training only",
    "aux_loss_coef": "training only",
    "z_loss_coefficient": "training only",
    "initializer_range": "initial weights, which verification overwrites",
    "init_std": "initial weights, which verification overwrites",
    "problem_type": "classification heads only",
    "num_labels": "classification heads only",
    "pretraining_tp": "a split of the same computation",
    "gradient_checkpointing": "training only",
    "moe_jitter_eps": "training only",
    "moe_loss_weight": "training only",
    "is_decoder": "an encoder is no causal LM",
    "is_encoder_decoder": "there is no encoder's output in a causal LM",
    "use_bidirectional_attention": "attention in both directions is no causal LM",
    "add_cross_attention": "there is no encoder's output in a causal LM",
    "chunk_size_feed_forward": "a split of the same computation",
    "num_logits_to_keep": "which positions get logits; the variants give one",
    "dtype": "fp32 is what is compared",
    "torch_dtype": "fp32 is what is compared",
    "vocab_size": "a size",
    "hidden_size": "a size",
    "intermediate_size": "a size",
    "num_hidden_layers": "a size",
    "num_attention_heads": "a size",
    "max_position_embeddings": "a size; varied along with the rope types that depend on it",
}
"""Fields that code may branch on and that verification leaves alone, each with the reason."""

NOT_VARIED_BEGINNINGS: Final[Mapping[str, str]] = {
    "vision_config.": "images, which a causal LM's prompts do not have",
    "audio_config.": "sound, which a causal LM's prompts do not have",
    "classifier_": "classification heads only",
    "summary_": "classification heads only",
}

NOT_VARIED_ENDINGS: Final[Mapping[str, str]] = {
    "dropout": "zero in eval mode",
    "_pdrop": "zero in eval mode",
    "_dropout_prob": "zero in eval mode",
    "dropout_p": "zero in eval mode",
    "layerdrop": "training only",
    "jitter_noise": "training only",
    "_token_id": "a token, not a computation",
    "_token_index": "a token, not a computation",
    "initializer_range": "initial weights, which verification overwrites",
}
