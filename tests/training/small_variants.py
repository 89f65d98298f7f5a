"""A tiny llama and hand-written variants of it whose effect on the logits is easy to see."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaModel, LlamaRMSNorm

from runtime.training.features import active
from runtime.training.patching import PatchReport, Variant, apply_variants, variants

IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def tiny(**config: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, "vocab_size": 19, **config})).eval()


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


class DoublingNorm(nn.Module):
    """A class of the runtime: it knows no family."""

    weight: nn.Parameter
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return 2 * self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


class RmpadLlamaMLP(LlamaMLP):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x)
        return 3 * out if active(self, "swiglu") else out


class RmpadLlamaAttention(LlamaAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out, weights = super().forward(*args, **kwargs)
        return (5 * out if active(self, "rope") else out), weights


class RmpadLlamaModel(LlamaModel):
    """With ``rmpad`` all rows in one, ``[1, B * S, H]``; later rows then attend to earlier ones, which shows."""

    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        return super().forward(input_ids=input_ids.reshape(1, -1) if active(self, "rmpad") else input_ids, **kwargs)


class RmpadLlamaForCausalLM(LlamaForCausalLM):
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
        out = super().forward(input_ids=input_ids, **kwargs)
        if active(self, "rmpad"):
            out["logits"] = out.logits.reshape(*input_ids.shape, -1)
        return out


VARIANTS = variants(
    {
        LlamaRMSNorm: Variant(DoublingNorm, "rms_norm"),
        LlamaMLP: Variant(RmpadLlamaMLP, "swiglu"),
        LlamaAttention: Variant(RmpadLlamaAttention, "rmpad", "rope"),
        LlamaModel: Variant(RmpadLlamaModel, "rmpad"),
        LlamaForCausalLM: Variant(RmpadLlamaForCausalLM, "rmpad", "cross_entropy", "fused_linear_cross_entropy"),
    }
)
NOT_APPLIED = {"experts": "no class that multiplies by stacked expert weights"}


def apply_liger(
    rope: bool = True,
    cross_entropy: bool = False,
    fused_linear_cross_entropy: bool = True,
    rms_norm: bool = True,
    swiglu: bool = True,
    experts: bool = True,
    use_rmpad: bool = False,
    model: nn.Module | None = None,
) -> PatchReport:
    return apply_variants(
        VARIANTS,
        NOT_APPLIED,
        model,
        rope=rope,
        cross_entropy=cross_entropy,
        fused_linear_cross_entropy=fused_linear_cross_entropy,
        rms_norm=rms_norm,
        swiglu=swiglu,
        experts=experts,
        rmpad=use_rmpad,
    )


def apply_rmpad(model: nn.Module | None = None) -> PatchReport:
    return apply_variants(VARIANTS, NOT_APPLIED, model, rmpad=True)
