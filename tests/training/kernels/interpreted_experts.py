"""Fused experts against upstream's experts modules."""

import pytest
import torch
from parity import error, feature, results_and_gradients
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3NaiveMoe
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from runtime.training.kernels.experts import KernelExperts, experts, mismatch

HIDDEN, INNER, EXPERTS, TOKENS, CHOICES = 16, 8, 4, 5, 2
MIXTRAL = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_local_experts": EXPERTS}
OTHERS = {"hidden_size": HIDDEN, "moe_intermediate_size": INNER}
CASES = {
    "mixtral": (MixtralExperts, MixtralConfig(**MIXTRAL)),
    "qwen3_moe": (Qwen3MoeExperts, Qwen3MoeConfig(**OTHERS, num_experts=EXPERTS)),
    "deepseek_v3": (DeepseekV3NaiveMoe, DeepseekV3Config(**OTHERS, n_routed_experts=EXPERTS)),
}


def make(cls, config, dtype=torch.float32):
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    module = cls(config)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return feature(module.to(dtype), "experts")


def routed(dtype=torch.float32, weights=None):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    index = torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:CHOICES] for _ in range(TOKENS)])
    shares = torch.rand(TOKENS, CHOICES, generator=generator).to(weights or dtype).requires_grad_()
    return states, index, shares  # the last expert gets no token


def both(module, states, index, shares):
    leaves = [states, shares, *module.parameters()]
    expected = results_and_gradients(lambda: module(states, index, shares), leaves)
    return results_and_gradients(lambda: experts(module, module.forward)(states, index, shares), leaves), expected


@pytest.mark.parametrize("case", CASES)
def test_float32(case, launches):
    assert error(*both(make(*CASES[case]), *routed())) <= 5e-6
    assert launches["_fused_up_proj_swiglu_kernel"] == launches["_moe_bwd_dW1_kernel"] == 1


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.float32])
def test_bfloat16(weights, launches):
    module = make(*CASES["mixtral"], torch.bfloat16)
    assert error(*both(module, *routed(torch.bfloat16, weights))) <= 2e-2
    assert launches["_moe_bwd_down_proj_kernel"] == 1


def test_in_front_of_upstreams_class(launches):
    module, routing = make(*CASES["mixtral"]), routed()
    expected = module(*routing)
    module.__class__ = type("Variant", (KernelExperts, MixtralExperts), {})
    assert error([module(*routing)], [expected]) <= 5e-6
    assert launches["_fused_up_proj_swiglu_kernel"] == 1
    assert torch.equal(feature(module)(*routing), expected)
    assert launches["_fused_up_proj_swiglu_kernel"] == 1


def test_an_index_past_the_last_expert_adds_nothing():
    states, index, shares = routed()
    index[0, 1] = index[3, 0] = EXPERTS
    module = make(*CASES["mixtral"])
    module.num_experts = EXPERTS
    leaves = [states, shares, *module.parameters()]
    kept = shares * (index < EXPERTS)
    expected = results_and_gradients(lambda: module(states, index.clamp(max=EXPERTS - 1), kept), leaves)
    found = results_and_gradients(lambda: experts(module, module.forward)(states, index, shares), leaves)
    assert error(found, expected) <= 5e-6


def test_what_does_not_fit_is_upstreams(launches):
    module = make(*CASES["mixtral"])
    assert mismatch(module) is None
    assert experts(feature(make(*CASES["mixtral"]), "swiglu"), module.forward) == module.forward
    states, index, shares = routed()
    function = experts(module, lambda *args: "upstream")
    assert function(states.bfloat16(), index, shares) == "upstream"
    assert function(states.view(1, TOKENS, HIDDEN), index, shares) == "upstream"
    assert function(states[:0], index[:0], shares[:0]) == "upstream"
    with torch.autocast("cpu", torch.bfloat16):
        assert function(states, index, shares) == "upstream"
    assert not launches


def test_reasons():
    gpt_oss = GptOssConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS)
    module = make(GptOssExperts, gpt_oss)
    assert mismatch(module) == "weights are transposed or have biases, or the class does not say"
    assert experts(module, module.forward) == module.forward
    gelu = make(MixtralExperts, MixtralConfig(**MIXTRAL, hidden_act="gelu"))
    assert mismatch(gelu) == "the activation is GELUActivation, not SiLU"
    square = make(MixtralExperts, MixtralConfig(**MIXTRAL))
    square.down_proj = torch.nn.Parameter(square.down_proj.transpose(1, 2).contiguous())
    assert "are not [E, 2I, H] and [E, H, I]" in mismatch(square)
    own = make(type("Own", (MixtralExperts,), {"_apply_gate": lambda self, x: x}), MixtralConfig(**MIXTRAL))
    assert mismatch(own) == "a gate of its own"
    assert mismatch(torch.nn.Linear(2, 2)) == "no stacked gate_up_proj and down_proj"
