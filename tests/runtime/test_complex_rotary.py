"""Complex rotary rows in real arithmetic, against upstream's complex one."""

from typing import Any

import pytest
import torch
from onnx_harness import Session, export
from torch import Tensor, nn
from transformers import DeepseekV2Config, LlamaConfig
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2RotaryEmbedding, apply_rotary_emb
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from runtime.qeff.rotary import PrecomputedComplexRotary, complex_product

ROWS, DIM = 64, 12
KINDS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
}


def pair(kind: str) -> tuple[Any, Any]:
    """Upstream's module, and another one like it as a transform leaves it."""
    config = DeepseekV2Config(
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=4,
        qk_rope_head_dim=DIM,
        max_position_embeddings=ROWS,
        rope_parameters=dict(KINDS[kind]),
    )
    return DeepseekV2RotaryEmbedding(config), variant_of(DeepseekV2RotaryEmbedding(config))


def variant_of(module: nn.Module) -> Any:
    upstream = type(module)
    module.__class__ = type(f"QEff{upstream.__name__}", (PrecomputedComplexRotary, upstream), {})
    module.__qeff_init__()  # type: ignore[operator]
    return module


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_upstreams(kind: str, dtype: torch.dtype) -> None:
    upstream, variant = pair(kind)
    x, positions = torch.zeros(1, 1, dtype=dtype), torch.tensor([[0, 1, 7, 40], [63, 5, 5, 2]])
    found = variant(x, positions)
    torch.testing.assert_close(found, torch.view_as_real(upstream(x, positions)), rtol=0.0, atol=1e-5)
    assert found.dtype == torch.float32  # upstream's row is complex64 whatever the states are


def test_a_pads_row_is_finite() -> None:
    _, variant = pair("default")
    assert variant(torch.zeros(1, 1), torch.tensor([[3, -1]])).isfinite().all()


def test_products_are_those_of_complex_numbers() -> None:
    left, right = torch.randn(2, 3, 5, 4, 2), torch.randn(2, 1, 5, 4, 2)
    expected = torch.view_as_complex(left) * torch.view_as_complex(right)
    torch.testing.assert_close(complex_product(left, right), torch.view_as_real(expected))


def test_a_class_that_returns_a_pair_is_refused() -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, max_position_embeddings=ROWS)
    with pytest.raises(TypeError, match="not a complex row"):
        variant_of(LlamaRotaryEmbedding(config))


class Rotation(nn.Module):
    """Upstream's rotation with complex numbers taken apart."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, states: Tensor, position_ids: Tensor) -> Tensor:
        rows = self.rotary(states, position_ids).unsqueeze(1)
        return complex_product(states.reshape(*states.shape[:-1], -1, 2), rows).flatten(3)


@pytest.mark.parametrize("kind", ["default", "dynamic"])
def test_rotation_in_onnx_runtime(kind: str) -> None:
    upstream, variant = pair(kind)
    torch.manual_seed(0)
    axes = {"states": {0: "b", 2: "s"}, "position_ids": {0: "b", 1: "s"}}
    traced = (torch.randn(1, 3, 2, DIM), torch.tensor([[0, 1]]))
    session = Session(export(Rotation(variant), traced, ["states", "position_ids"], ["out"], axes))
    for positions in (torch.tensor([[4]]), torch.tensor([[0, 1, 2], [61, 62, 63]])):
        states = torch.randn(positions.shape[0], 3, positions.shape[1], DIM)
        expected, _ = apply_rotary_emb(states, states, upstream(states, positions))
        (found,) = session(states=states, position_ids=positions)
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5)
