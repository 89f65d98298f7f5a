"""The factory of tiny models: any type, the same for the same seed, and shaped so that mistakes show."""

import pytest
import torch

from runtime.verify import factory
from runtime.verify.config_fields import declared
from runtime.verify.exceptions import EXCEPTIONS
from runtime.verify.sizes import EXPERT_COUNTS, HIDDEN, VOCAB, WINDOW


def _weights(family: str, seed: int, **overrides: object) -> dict[str, torch.Tensor]:
    return factory.build(family, overrides, seed)[1].state_dict()


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "deepseek_v3", "mamba", "bloom"])
def test_same_seed_same_weights(family: str) -> None:
    torch.manual_seed(1)
    first = _weights(family, seed=3)
    torch.manual_seed(2)
    second = _weights(family, seed=3)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = _weights(family, seed=4)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    factory.build("llama", seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2", "mixtral", "glm4_moe"])
def test_weights_hide_nothing(family: str) -> None:
    for name, weight in _weights(family, seed=0).items():
        if not weight.is_floating_point():
            continue
        assert bool(torch.isfinite(weight).all()), name
        if weight.dim() == 1 and weight.numel() > 1:
            assert float(weight.std()) > 0.05, f"{name} is nearly constant"
            assert not bool((weight == 0).any()), f"{name} has zeros"


def test_router_corrections_are_random() -> None:
    corrections = [w for name, w in _weights("deepseek_v3", seed=0).items() if name.endswith("e_score_correction_bias")]
    assert corrections
    assert all(float(correction.std()) > 0 for correction in corrections)


def test_shapes_are_not_accidentally_square() -> None:
    config = factory.tiny_config("llama")
    assert config.num_key_value_heads not in (1, config.num_attention_heads)
    assert config.head_dim * config.num_attention_heads != config.hidden_size
    assert config.hidden_size not in (config.intermediate_size, 2 * config.intermediate_size)
    assert config.hidden_size & (config.hidden_size - 1) != 0


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("gemma3_text", {"sliding_attention", "full_attention"}),
        ("gpt_oss", {"sliding_attention", "full_attention"}),
        ("llama4_text", {"chunked_attention", "full_attention"}),
        ("cohere2", {"sliding_attention", "full_attention"}),
        ("qwen3_next", {"linear_attention", "full_attention"}),
    ],
)
def test_every_kind_of_layer_occurs(family: str, kinds: set[str]) -> None:
    assert set(factory.tiny_config(family).layer_types) == kinds


def test_general_names_are_understood_through_the_attribute_map() -> None:
    config = factory.tiny_config("gpt2")
    assert (config.n_embd, config.vocab_size, config.n_layer) == (HIDDEN, VOCAB, 3)


def test_mixtures_route() -> None:
    """Among one expert any routing is right."""
    counted = {}
    for family in factory.model_types():
        config = factory.text_config_class(family)
        names = {known for name in declared(config) for known in factory._names_of(config, name)}
        for count in names & EXPERT_COUNTS:
            counted[family] = getattr(factory.tiny_config(family), count)
    assert {"hunyuan_v1_moe", "mixtral", "phimoe"} <= counted.keys()
    assert [family for family, count in counted.items() if count == 1] == []


def test_overrides_win() -> None:
    config = factory.tiny_config("gemma2", {"sliding_window": WINDOW + 2, "num_hidden_layers": 5})
    assert (config.sliding_window, config.num_hidden_layers, len(config.layer_types)) == (WINDOW + 2, 5, 5)


def test_mapped_class_is_built_from_the_text_part_of_a_composite() -> None:
    config, model = factory.build("llama4")
    assert config.model_type == "llama4_text"
    assert type(model).__name__ == "Llama4ForCausalLM"


def test_refusals_carry_upstreams_words() -> None:
    with pytest.raises(factory.CannotBuildError, match="multiple of the number of attention heads"):
        factory.build("llama", {"num_attention_heads": 7})


def test_unknown_type() -> None:
    with pytest.raises(KeyError, match="no_such_type"):
        factory.build("no_such_type")


@pytest.mark.parametrize("name", sorted(EXCEPTIONS))
def test_every_exception_is_needed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its entries the type cannot be built or run; an exception that is no longer needed should go."""
    families = [family for family in factory.model_types() if factory.config_class(family).model_type == name]
    if not families:
        pytest.skip(f"{name} is a type of other releases")
    monkeypatch.setattr(factory, "EXCEPTIONS", {other: entry for other, entry in EXCEPTIONS.items() if other != name})
    with pytest.raises(Exception):  # noqa: B017 - upstream's own errors, of any type
        _, model = factory.build(families[0])
        model(input_ids=torch.arange(20, 33)[None])
