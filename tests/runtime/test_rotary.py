"""Rotary tables against upstream's own forward, for every kind of frequencies and several layouts."""

import copy
import io
from typing import Any

import pytest
import torch
from onnx_harness import Session, export
from torch import Tensor, nn
from transformers import (
    CohereConfig,
    DeepseekV2Config,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GlmConfig,
    GPTNeoXConfig,
    GptOssConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Olmo2Config,
    Phi3Config,
    PhimoeConfig,
)
from transformers.models.cohere.modeling_cohere import CohereRotaryEmbedding
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2RotaryEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gemma4.modeling_gemma4 import Gemma4TextRotaryEmbedding
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding
from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.olmo2.modeling_olmo2 import Olmo2RotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding

from runtime.qeff.rotary import PrecomputedRotary

PAD = -1
SMALL = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
DIM = 12
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "truncate": False,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "short_factor": [1.0 + 0.1 * i for i in range(DIM // 2)],
    "long_factor": [2.0 + i for i in range(DIM // 2)],
    "original_max_position_embeddings": 16,
}


def partial(parameters: dict[str, Any], factor: float) -> dict[str, Any]:
    """The parameters for a rotary width of ``factor`` times the head dim."""
    width = int(DIM * factor) // 2
    lists = {name: value[:width] for name, value in parameters.items() if isinstance(value, list)}
    return {**parameters, **lists, "partial_rotary_factor": factor}


def llama(parameters: dict[str, Any], **more: Any) -> tuple[type[nn.Module], Any]:
    return LlamaRotaryEmbedding, LlamaConfig(**{**SMALL, "rope_parameters": copy.deepcopy(parameters), **more})


def of(rotary: type[nn.Module], config: type[Any], parameters: dict[str, Any], **more: Any) -> Any:
    return rotary, config(**{**SMALL, "rope_parameters": copy.deepcopy(parameters), **more})


def per_layer_type(rotary: type[nn.Module], config: type[Any], full: dict[str, Any], **more: Any) -> Any:
    parameters = {"full_attention": dict(full), "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}
    layer_types = ["sliding_attention", "full_attention"]
    return of(rotary, config, parameters, head_dim=DIM, num_hidden_layers=2, layer_types=layer_types, **more)


CASES: dict[str, Any] = {
    "default": lambda: llama(DEFAULT),
    "head dim of its own": lambda: llama(DEFAULT, head_dim=22),
    "linear": lambda: llama(LINEAR),
    "llama3": lambda: llama(LLAMA3),
    "yarn": lambda: llama(YARN),
    "longrope": lambda: llama(LONGROPE),
    "dynamic": lambda: llama(DYNAMIC),
    "interleaved": lambda: of(CohereRotaryEmbedding, CohereConfig, DEFAULT),
    "interleaved dynamic": lambda: of(CohereRotaryEmbedding, CohereConfig, DYNAMIC),
    "partial, phi3": lambda: of(Phi3RotaryEmbedding, Phi3Config, partial(DEFAULT, 0.5), pad_token_id=0),
    "partial longrope": lambda: of(
        Phi3RotaryEmbedding,
        Phi3Config,
        partial(LONGROPE, 0.5),
        pad_token_id=0,
        original_max_position_embeddings=16,
    ),
    "partial, glm": lambda: of(GlmRotaryEmbedding, GlmConfig, partial(DEFAULT, 0.5), head_dim=DIM, pad_token_id=0),
    "partial dynamic, gpt_neox": lambda: of(GPTNeoXRotaryEmbedding, GPTNeoXConfig, partial(DYNAMIC, 0.5)),
    "half width yarn": lambda: of(GptOssRotaryEmbedding, GptOssConfig, YARN, head_dim=DIM),
    "float32 result": lambda: of(Olmo2RotaryEmbedding, Olmo2Config, YARN),
    "mscale of its own": lambda: of(
        PhimoeRotaryEmbedding, PhimoeConfig, {**LONGROPE, "short_mscale": 1.25, "long_mscale": 1.5}
    ),
    "alpha dynamic": lambda: of(
        HunYuanDenseV1RotaryEmbedding, HunYuanDenseV1Config, {**DYNAMIC, "alpha": 3.0}, head_dim=DIM
    ),
    "per layer type": lambda: per_layer_type(Gemma3RotaryEmbedding, Gemma3TextConfig, LINEAR),
    "per layer type, longrope": lambda: per_layer_type(Gemma3RotaryEmbedding, Gemma3TextConfig, LONGROPE),
    "per layer type, dynamic": lambda: per_layer_type(Gemma3RotaryEmbedding, Gemma3TextConfig, DYNAMIC),
    "proportional": lambda: per_layer_type(
        Gemma4TextRotaryEmbedding,
        Gemma4TextConfig,
        {"rope_type": "proportional", "rope_theta": 1000.0, "partial_rotary_factor": 0.25},
        global_head_dim=20,
    ),
}
LENGTH_DEPENDENT = {"longrope": 16, "mscale": 16, "dynamic": 64}
ROWS = 150


def variant_of(module: nn.Module) -> Any:
    """The module under a variant's class, as a transform leaves it."""
    upstream = type(module)
    module.__class__ = type(f"QEff{upstream.__name__}", (PrecomputedRotary, upstream), {})
    module.__qeff_init__()  # type: ignore[operator]
    return module


def layer_types(name: str) -> list[dict[str, str]]:
    if name.startswith(("per layer type", "proportional")):
        return [{"layer_type": "full_attention"}, {"layer_type": "sliding_attention"}]
    return [{}]


def upstream_row(name: str, dtype: torch.dtype, positions: list[int], keywords: dict[str, str]) -> Any:
    """What a fresh upstream module says about one row: upstream keeps the last row's frequencies in the module."""
    rotary, config = CASES[name]()
    return rotary(config)(torch.zeros(1, 1, dtype=dtype), torch.tensor([positions]), **keywords)


def made(name: str, rows: int = ROWS) -> Any:
    rotary, config = CASES[name]()
    config.max_seq_len_cached = rows
    return variant_of(rotary(config))


BATCHES = [
    [[0, 1, 2, 3, PAD], [90, 91, 92, 93, 94], [60, 61, 62, 63, PAD], [14, 15, 16, 17, 18]],
    [[15], [16], [63], [64], [149]],
    [[0, 7, 3]],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_each_row_is_upstreams_row(name: str, dtype: torch.dtype) -> None:
    """Short and long rows side by side, beyond the original length: each row as upstream has it alone."""
    module = made(name)
    for keywords in layer_types(name):
        for batch in BATCHES:
            found = module(torch.zeros(1, 1, dtype=dtype), torch.tensor(batch), **keywords)
            assert all(torch.isfinite(part).all() for part in found)
            for row, positions in enumerate(batch):
                live = [position for position in positions if position != PAD]
                expected = upstream_row(name, dtype, live, keywords)
                for ours, theirs in zip(found, expected, strict=True):
                    assert ours.dtype == theirs.dtype
                    tolerance = 2e-5 if theirs.dtype == torch.float32 else 1e-2
                    torch.testing.assert_close(ours[row, : len(live)], theirs[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_upstreams_module_is_left_as_it_was(name: str) -> None:
    """Building the long tables must not leave long frequencies in the module."""
    rotary, config = CASES[name]()
    module = rotary(config)
    before = {key: value.clone() for key, value in module.named_buffers()}
    config.max_seq_len_cached = ROWS
    variant_of(module)
    after = dict(module.named_buffers())
    assert set(before) < set(after)
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not module.state_dict(), "tables are no part of a checkpoint"


@pytest.mark.parametrize("name", CASES)
def test_length_at_which_frequencies_change(name: str) -> None:
    expected = next((length for kind, length in LENGTH_DEPENDENT.items() if kind in name), None)
    assert made(name).length_dependent_from == expected
    if expected == 16:
        assert made(name, rows=16).length_dependent_from is None, "no row can be longer"


@pytest.mark.parametrize("name", CASES)
def test_one_graph_serves_other_sizes(name: str) -> None:
    module = made(name)
    for keywords in layer_types(name):

        class Call(nn.Module):
            def __init__(self, arguments: dict[str, str]) -> None:
                super().__init__()
                self.rotary, self.arguments = module, arguments

            def forward(self, x: Tensor, position_ids: Tensor) -> Any:
                return self.rotary(x, position_ids, **self.arguments)

        example = (torch.zeros(2, 4), torch.tensor([[0, 1, 2, 3], [8, 9, PAD, PAD]]))
        axes = {"x": {0: "batch"}, "position_ids": {0: "batch", 1: "seq"}}
        model = export(Call(keywords), example, ["x", "position_ids"], ["cos", "sin"], axes)
        prefix = f"rotary.{keywords['layer_type']}_" if keywords else "rotary."
        initializers = {entry.name for entry in model.graph.initializer}
        assert {f"{prefix}cos_cached", f"{prefix}sin_cached"} <= initializers, initializers
        session = Session(model)
        for batch in BATCHES:
            positions = torch.tensor(batch)
            expected = module(torch.zeros(1), positions, **keywords)
            for found, wanted in zip(session(x=torch.zeros(1, 4), position_ids=positions), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_rows_are_the_configs_positions_or_what_was_asked_for() -> None:
    rotary, config = CASES["default"]()
    module = variant_of(rotary(config))
    assert module.cos_cached.shape == module.sin_cached.shape == (64, DIM)
    assert made("default", rows=10).cos_cached.shape == (10, DIM)
    assert made("per layer type").full_attention_cos_cached.shape == (ROWS, DIM)
    assert made("proportional").full_attention_cos_cached.shape == (ROWS, 20)
    assert made("half width yarn").cos_cached.shape == (ROWS, DIM // 2)


@pytest.mark.parametrize("name", ["default", "longrope", "per layer type"])
def test_position_outside_the_table_is_an_error(name: str) -> None:
    module = made(name, rows=20)
    keywords = layer_types(name)[0]
    module(torch.zeros(1), torch.tensor([[19]]), **keywords)
    with pytest.raises(IndexError, match=r"position 20 is outside the table of 20 rows"):
        module(torch.zeros(1), torch.tensor([[3, 4], [20, PAD]]), **keywords)


def test_dynamic_frequencies_have_no_last_row() -> None:
    rotary, config = CASES["dynamic"]()
    module = variant_of(rotary(config))
    found = module(torch.zeros(1), torch.tensor([[1000]]))
    expected = upstream_row("dynamic", torch.float32, [1000], {})
    torch.testing.assert_close(found[0][0], expected[0][0], rtol=0, atol=1e-3)


def test_tables_stay_in_float32_when_the_model_is_cast() -> None:
    module = made("float32 result")
    before = module.cos_cached.clone()
    module.to(torch.bfloat16)
    assert module.cos_cached.dtype == torch.float32 and torch.equal(module.cos_cached, before)
    assert module(torch.zeros(1, dtype=torch.bfloat16), torch.tensor([[1]]))[0].dtype == torch.float32
    assert module.to("meta").cos_cached.is_meta


def test_complex_frequencies_are_refused() -> None:
    config = DeepseekV2Config(**{**SMALL, "qk_rope_head_dim": 8, "num_hidden_layers": 1})
    with pytest.raises(TypeError, match=r"DeepseekV2RotaryEmbedding: forward returns a torch.complex64 tensor"):
        variant_of(DeepseekV2RotaryEmbedding(config))


class LengthScaled(LlamaRotaryEmbedding):
    """Depends on the length, and says nothing of it."""

    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        cos, sin = super().forward(x, position_ids)
        return cos * (position_ids.max() + 1), sin


class NoPair(LlamaRotaryEmbedding):
    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        return torch.cat(super().forward(x, position_ids), dim=-1)


class ThreeAxes(LlamaRotaryEmbedding):
    def forward(self, x: Tensor, position_ids: Tensor) -> Any:
        cos, sin = super().forward(x, position_ids)
        return cos.expand(3, -1, -1), sin.expand(3, -1, -1)


@pytest.mark.parametrize(
    "rotary, error, message",
    [
        (LengthScaled, ValueError, "depends on the length"),
        (NoPair, TypeError, "not a \\(cos, sin\\) pair"),
        (ThreeAxes, TypeError, r"for positions \[1, 2\] cos and sin are \(3, 2, 12\)"),
    ],
)
def test_what_a_table_cannot_say_is_refused(rotary: type[nn.Module], error: type[Exception], message: str) -> None:
    _, config = CASES["default"]()
    with pytest.raises(error, match=message):
        variant_of(rotary(config))


def test_a_module_on_meta_is_refused() -> None:
    _, config = CASES["default"]()
    with torch.device("meta"):
        module = LlamaRotaryEmbedding(config)
    with pytest.raises(ValueError, match="meta device"):
        variant_of(module)


def test_wrong_calls_are_errors() -> None:
    with pytest.raises(ValueError, match="3 dimensions"):
        made("default")(torch.zeros(1), torch.zeros(3, 1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="no layer type 'full_attention'"):
        made("default")(torch.zeros(1), torch.tensor([[0]]), layer_type="full_attention")
    with pytest.raises(ValueError, match="no layer type None"):
        made("per layer type")(torch.zeros(1), torch.tensor([[0]]))


def test_a_transformed_module_can_be_copied_and_saved() -> None:
    module = made("longrope")
    twin = copy.deepcopy(module)
    positions = torch.tensor([[3, 4], [40, 41]])
    assert torch.equal(twin(torch.zeros(1), positions)[0], module(torch.zeros(1), positions)[0])
    torch.save(module.state_dict(), io.BytesIO())
