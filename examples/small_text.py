"""What the training examples share: text from this repository, one token a byte, and models small enough for a CPU."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

PAD = 256
VOCABULARY = 257
LONGEST = 96
ROOT = Path(__file__).resolve().parent.parent

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": None,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True},
    "gemma2": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
}


def small_model(model_type: str, seed: int) -> PreTrainedModel:
    """A new model of one of ``MODELS``; the same weights for the same seed."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](**_SIZES, **MODELS[model_type])
    return AutoModelForCausalLM.from_config(config)


def paragraphs() -> list[dict[str, list[int]]]:
    """The paragraphs of this repository's own documents, as ``input_ids``: up to ``LONGEST`` bytes, at least 2."""
    found = []
    for path in sorted(ROOT.glob("*.md")):
        for paragraph in path.read_text("utf-8").split("\n\n"):
            ids = list(paragraph.strip().encode())[:LONGEST]
            if len(ids) > 1:
                found.append({"input_ids": ids})
    return found


def padded(samples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch ``[B, S]``, padded on the right to its longest sample; labels are -100 on padding."""
    longest = max(len(sample["input_ids"]) for sample in samples)
    ids = torch.tensor([it["input_ids"] + [PAD] * (longest - len(it["input_ids"])) for it in samples])
    mask = torch.tensor([[1] * len(it["input_ids"]) + [0] * (longest - len(it["input_ids"])) for it in samples])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def side_by_side(unpatched: list[float], patched: list[float]) -> str:
    """Two loss curves as a table, and how far they are apart."""
    rows = [f"{'step':>4}  {'unpatched':>10}  {'patched':>10}  {'difference':>10}"]
    for step, (a, b) in enumerate(zip(unpatched, patched, strict=True), 1):
        rows.append(f"{step:>4}  {a:>10.6f}  {b:>10.6f}  {abs(a - b):>10.1e}")
    return "\n".join([*rows, f"largest difference: {largest_difference(unpatched, patched):.1e}"])


def largest_difference(unpatched: list[float], patched: list[float]) -> float:
    """Of two loss curves of the same length."""
    return max(abs(a - b) for a, b in zip(unpatched, patched, strict=True))
