"""Where a general fact is not enough to make a tiny configuration: values for single fields, each with its reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Exceptional:
    """A value for one field of one configuration class, and why the general sizes do not do."""

    value: Any
    reason: str


_ATTENTION_AND_MAMBA = "the default pattern has no attention layer, and upstream's own cache needs one"

EXCEPTIONS: Final[Mapping[str, Mapping[str, Exceptional]]] = {
    "bamba": {"attn_layer_indices": Exceptional([1, 3], _ATTENTION_AND_MAMBA)},
    "codegen": {"n_head": Exceptional(8, "upstream splits the fused projection for four devices; heads come in fours")},
    "dbrx": {
        "attn_config": Exceptional(
            {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 3.0},
            "upstream reads a rope_theta that has no field, and clamps by None",
        ),
        "ffn_config": Exceptional(
            {"hidden_size": 40, "ffn_hidden_size": 96, "moe_num_experts": 6, "moe_top_k": 2},
            "not listed among the sub-configurations; upstream's experts take ffn_hidden_size for the model's width",
        ),
    },
    "gemma3n_text": {
        "num_hidden_layers": Exceptional(
            7, "the layers that share keys come last and need one owner of each layer type before them"
        )
    },
    "gpt_neo": {
        "attention_types": Exceptional(
            [[["global", "local"], 2]], "a run-length pattern that must add up to the layers"
        )
    },
    "granitemoehybrid": {
        "layer_types": Exceptional(["mamba", "attention", "mamba", "attention"], _ATTENTION_AND_MAMBA)
    },
    "helium": {
        "head_dim": Exceptional(16, "upstream's output projection is square: heads x head_dim must be the hidden size")
    },
    "lfm2_moe": {
        "layer_types": Exceptional(
            ["conv", "full_attention", "conv", "full_attention"], "required by upstream, without a default"
        )
    },
    "mamba2": {"head_dim": Exceptional(32, "heads x head_dim must be expand x hidden")},
    "mimo_v2_flash": {
        "num_key_value_heads": Exceptional(3, "sliding layers have twice as many, which must divide the query heads")
    },
    "reformer": {
        "axial_pos_shape": Exceptional([8, 16], "must multiply to the positions"),
        "axial_pos_embds_dim": Exceptional([32, 64], "must add up to the hidden size"),
        "local_attn_chunk_length": Exceptional(4, "must be shorter than the prompt"),
        "lsh_attn_chunk_length": Exceptional(4, "must be shorter than the prompt"),
    },
    "xlstm": {
        "hidden_size": Exceptional(128, "upstream rounds some widths to multiples of 64 and not others"),
        "num_heads": Exceptional(4, "upstream rounds the head widths to multiples of 64 before it divides them"),
    },
    "xmod": {"default_language": Exceptional("en_XX", "upstream runs only with a language chosen")},
    "zamba": {
        "num_hidden_layers": Exceptional(6, "two hybrid layers, so that their shared block is shared"),
        "attn_layer_period": Exceptional(2, "two hybrid layers among six"),
        "attn_layer_offset": Exceptional(1, "must be less than the period"),
    },
    "zamba2": {
        "layers_block_type": Exceptional(
            ["mamba", "hybrid", "mamba", "hybrid"], "the default list has 54 entries whatever the number of layers"
        ),
    },
}
