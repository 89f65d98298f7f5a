"""Tiny random upstream models for the runtime's tests, and what unmodified upstream says about them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, MixtralConfig, Phi3Config

VOCAB = 97
PROMPT_LENGTHS = (5, 19, 11)
NEW_TOKENS = 16

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": 0,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 16,
    "factor": 4.0,
}


def config(name: str) -> Any:
    """Windows are shorter than the prompts, and row lengths pass the lengths at which rope changes."""
    match name:
        case "llama":
            return LlamaConfig(**_COMMON)
        case "llama-dynamic-rope":
            rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
            return LlamaConfig(**{**_COMMON, "max_position_embeddings": 16}, rope_parameters=rope)
        case "llama-longrope":
            return LlamaConfig(**_COMMON, rope_parameters=dict(_LONGROPE))
        case "gemma2":
            return Gemma2Config(
                **_COMMON,
                head_dim=16,
                sliding_window=6,
                attn_logit_softcapping=5.0,
                final_logit_softcapping=9.0,
                query_pre_attn_scalar=20,
            )
        case "gpt2":
            return GPT2Config(
                vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=36, eos_token_id=None, bos_token_id=None
            )
        case "mixtral":
            return MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2, sliding_window=7)
        case "phi3-longrope":
            return Phi3Config(**_COMMON, original_max_position_embeddings=16, rope_parameters=dict(_LONGROPE))
    raise ValueError(name)


def build(name: str, seed: int = 0) -> Any:
    """A model whose weights are spread out, so that its greedy tokens vary."""
    model = AutoModelForCausalLM.from_config(config(name), attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3, generator=generator)
            elif name.endswith("bias"):
                parameter.uniform_(-0.5, 0.5, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


def prompts(lengths: Sequence[int] = PROMPT_LENGTHS, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator) for length in lengths]


def padded(rows: Sequence[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of `rows` and its attention mask; the padding holds what is no token id."""
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), -100)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        input_ids[index, where] = row
        attention_mask[index, where] = 1
    return input_ids, attention_mask


@dataclass(frozen=True)
class Reference:
    """Upstream's greedy tokens [rows, new tokens] and their logits [rows, new tokens, vocab]."""

    tokens: torch.Tensor
    logits: torch.Tensor

    def assert_agrees(self, generated_ids: torch.Tensor, logits: torch.Tensor, tolerance: float) -> None:
        """Same tokens, and logits that differ by at most `tolerance` of upstream's range of logits."""
        assert generated_ids.tolist() == self.tokens.tolist()
        span = self.logits.amax(-1) - self.logits.amin(-1)
        error = (logits - self.logits).abs().amax(-1) / span
        assert error.max().item() <= tolerance


def upstream(model: Any, rows: Sequence[torch.Tensor], *, use_cache: bool = True) -> Reference:
    """`model.generate` for each row alone, without padding.

    Each row gets a copy of the model: upstream's dynamic rope remembers the longest sequence that it saw.
    """
    tokens, logits = [], []
    for row in rows:
        fresh = copy.deepcopy(model)
        out = fresh.generate(
            row[None],
            attention_mask=torch.ones(1, len(row), dtype=torch.int64),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            use_cache=use_cache,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens.append(out.sequences[0, len(row) :])
        logits.append(torch.stack(out.logits, dim=1)[0])
    return Reference(torch.stack(tokens), torch.stack(logits))
