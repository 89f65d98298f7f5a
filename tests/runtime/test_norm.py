"""The norm variants against upstream's classes: the same bits in torch, close in ONNX Runtime."""

import copy

import pytest
import torch
from onnx_harness import Session, export
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
from transformers.models.helium.modeling_helium import HeliumRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextRMSNorm
from transformers.models.nanochat.modeling_nanochat import NanoChatRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from runtime.qeff.norm import CastLastRMSNormAIC, CustomRMSNormAIC, GemmaCustomRMSNormAIC, UnitRMSNormAIC

SIZE = 96
PAIRS = [
    (LlamaRMSNorm, CustomRMSNormAIC),
    (Llama4TextRMSNorm, CustomRMSNormAIC),
    (GemmaRMSNorm, GemmaCustomRMSNormAIC),
    (Gemma3RMSNorm, GemmaCustomRMSNormAIC),
    (Olmo2RMSNorm, CastLastRMSNormAIC),
    (GptOssRMSNorm, CastLastRMSNormAIC),
    (HeliumRMSNorm, CastLastRMSNormAIC),
    (NanoChatRMSNorm, UnitRMSNormAIC),
]


def pair(upstream: type[nn.Module], variant: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    """An upstream norm with a random weight and an unusual epsilon, and a copy of it under the variant's class."""
    module = upstream(eps=3e-3) if variant is UnitRMSNormAIC else upstream(SIZE, eps=3e-3)
    for weight in module.parameters():
        nn.init.normal_(weight, mean=0.3, std=1.0)
    swapped = copy.deepcopy(module)
    swapped.__class__ = variant
    return module.eval(), swapped.eval()


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("upstream, variant", PAIRS, ids=lambda value: value.__name__)
def test_same_bits_as_upstream(
    upstream: type[nn.Module],
    variant: type[nn.Module],
    weight_dtype: torch.dtype,
    hidden_dtype: torch.dtype,
) -> None:
    module, swapped = (each.to(weight_dtype) for each in pair(upstream, variant))
    hidden = (torch.randn(3, 17, SIZE) * torch.logspace(-2, 2, 17)[:, None]).to(hidden_dtype)
    expected, found = module(hidden), swapped(hidden)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("upstream, variant", PAIRS, ids=lambda value: value.__name__)
def test_one_operator_in_onnx_runtime(upstream: type[nn.Module], variant: type[nn.Module]) -> None:
    module, swapped = pair(upstream, variant)
    model = export(swapped, [torch.randn(2, 3, SIZE)], ["hidden"], ["out"], {"hidden": {0: "batch", 1: "seq"}})
    (node,) = [node for node in model.graph.node if node.op_type != "Constant"]
    assert (node.domain, node.op_type, len(node.input)) == ("com.qti.aisw.onnx", "CustomRMSNorm", 2)
    hidden = torch.randn(5, 1, SIZE) * 3
    torch.testing.assert_close(Session(model)(hidden=hidden)[0], module(hidden).detach(), rtol=0, atol=1e-5)


def test_norm_of_a_head_view() -> None:
    """Norms per head see 4-D states that are not contiguous."""
    module, swapped = pair(LlamaRMSNorm, CustomRMSNormAIC)
    states = torch.randn(2, 5, 4, SIZE).transpose(1, 2)
    assert torch.equal(module(states), swapped(states))


def test_without_an_epsilon_is_an_error() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(4))
    module.__class__ = CustomRMSNormAIC
    with pytest.raises(AttributeError, match="variance_epsilon"):
        module(torch.ones(1, 4))


def test_can_be_built_on_its_own() -> None:
    module = CustomRMSNormAIC(8)
    assert (module.variance_epsilon, module.eps, module.weight.shape) == (1e-5, 1e-5, (8,))
