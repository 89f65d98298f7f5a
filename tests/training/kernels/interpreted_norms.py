"""Norms by kernel against upstream's classes: results and gradients, float32 and bfloat16."""

import copy

import pytest
import torch
from parity import error, feature, results_and_gradients
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm
from transformers.models.nanochat.modeling_nanochat import NanoChatRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from runtime.training.kernels.norm import (
    LigerNormCastThenWeight,
    LigerNormNoWeight,
    LigerNormOnePlusWeight,
    LigerNormWeightThenCast,
)

SIZE = 40
PAIRS = [
    (LlamaRMSNorm, LigerNormCastThenWeight),
    (GemmaRMSNorm, LigerNormOnePlusWeight),
    (Gemma2RMSNorm, LigerNormOnePlusWeight),
    (Olmo2RMSNorm, LigerNormWeightThenCast),
    (GptOssRMSNorm, LigerNormWeightThenCast),
    (Llama4TextL2Norm, LigerNormNoWeight),
    (NanoChatRMSNorm, LigerNormNoWeight),
]
WEIGHTED = [LigerNormCastThenWeight, LigerNormOnePlusWeight, LigerNormWeightThenCast]


def make(cls: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    module = cls(eps=1e-5) if cls in (Llama4TextL2Norm, NanoChatRMSNorm) else cls(SIZE, eps=1e-5)
    for weight in module.parameters():
        nn.init.normal_(weight, mean=0.0 if cls in (GemmaRMSNorm, Gemma2RMSNorm) else 1.0, std=0.3)
    return module.to(dtype)


def swapped(module: nn.Module, cls: type[nn.Module]) -> nn.Module:
    module = copy.deepcopy(module)
    module.__class__ = cls
    return feature(module, "rms_norm")


def states(dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(2, 3, SIZE, generator=torch.Generator().manual_seed(1)) * 3).to(dtype).requires_grad_()


def both(upstream: nn.Module, ours: nn.Module, x: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    expected = results_and_gradients(lambda: upstream(x), [x, *upstream.parameters()])
    return results_and_gradients(lambda: ours(x), [x, *ours.parameters()]), expected


@pytest.mark.parametrize(("upstream", "ours"), PAIRS)
def test_float32(upstream, ours, launches):
    module = make(upstream, torch.float32)
    found, expected = both(module, swapped(module, ours), states(torch.float32))
    assert error(found, expected) <= 1e-6
    assert launches["_rms_norm_forward_kernel"] == launches["_rms_norm_backward_kernel"] == 1


@pytest.mark.parametrize(("upstream", "ours"), PAIRS)
def test_bfloat16(upstream, ours, launches):
    module = make(upstream, torch.bfloat16)
    found, expected = both(module, swapped(module, ours), states(torch.bfloat16))
    assert torch.equal(found[0], expected[0])
    assert error(found, expected) <= 1e-2  # upstream rounds between the steps of its backward
    assert launches["_rms_norm_forward_kernel"] == 1


@pytest.mark.parametrize(("upstream", "right"), [pair for pair in PAIRS if pair[1] in WEIGHTED])
def test_another_fact_gives_other_numbers(upstream, right):
    module, x = make(upstream, torch.bfloat16), states(torch.bfloat16)
    for wrong in WEIGHTED:
        same = torch.equal(swapped(module, wrong)(x), module(x))
        assert same == (wrong is right), wrong


@pytest.mark.parametrize(("upstream", "ours"), PAIRS)
def test_without_the_feature_upstreams_arithmetic_runs(upstream, ours, launches):
    module = make(upstream, torch.bfloat16)
    off = feature(swapped(module, ours))
    found, expected = both(module, off, states(torch.bfloat16))
    assert all(map(torch.equal, found, expected))
    assert not launches


def test_a_float32_weight_on_bfloat16_states(launches):
    module = make(LlamaRMSNorm, torch.float32)
    found, expected = both(module, swapped(module, LigerNormCastThenWeight), states(torch.bfloat16))
    assert found[0].dtype == torch.float32 and all(map(torch.equal, found, expected))
    assert not launches
    module = make(Olmo2RMSNorm, torch.float32)
    found, expected = both(module, swapped(module, LigerNormWeightThenCast), states(torch.bfloat16))
    assert torch.equal(found[0], expected[0]) and found[0].dtype == torch.bfloat16
    assert launches["_rms_norm_forward_kernel"] == 1


def test_heads_that_lie_across_memory_and_a_frozen_weight(launches):
    module = make(LlamaRMSNorm, torch.float32).requires_grad_(False)
    ours = swapped(module, LigerNormCastThenWeight)
    x = torch.randn(1, 5, 3, SIZE).transpose(1, 2).requires_grad_()
    assert error(results_and_gradients(lambda: ours(x), [x]), results_and_gradients(lambda: module(x), [x])) <= 1e-6
    assert launches["_rms_norm_backward_kernel"] == 1


def test_a_residual_beside_the_norm_keeps_its_gradient():
    module = make(LlamaRMSNorm, torch.float32)
    ours, x = swapped(module, LigerNormCastThenWeight), states(torch.float32)
    expected = results_and_gradients(lambda: x + module(x), [x])
    assert error(results_and_gradients(lambda: x + ours(x), [x]), expected) <= 1e-6


def test_two_backwards_through_one_graph():
    module = make(GemmaRMSNorm, torch.float32)
    ours, x = swapped(module, LigerNormOnePlusWeight), states(torch.float32)
    y = ours(x)
    first = torch.autograd.grad(y.pow(2).sum(), x, retain_graph=True)[0].clone()
    assert torch.equal(first, torch.autograd.grad(y.pow(2).sum(), x)[0])


def test_nothing_and_a_module_without_epsilon():
    ours = swapped(make(LlamaRMSNorm, torch.float32), LigerNormCastThenWeight)
    assert ours(torch.zeros(1, 0, SIZE)).shape == (1, 0, SIZE)
    del ours.variance_epsilon
    with pytest.raises(AttributeError, match="neither variance_epsilon nor eps"):
        ours(states(torch.float32))
