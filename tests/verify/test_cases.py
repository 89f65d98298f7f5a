"""Cases follow from the configuration class and the switches alone."""

import pytest
import torch

from runtime.verify import factory
from runtime.verify.cases import DEFAULT, cases_for
from runtime.verify.prompts import DECODE_STEPS, LENGTHS, LONG
from runtime.verify.rope_cases import SHORT_ORIGINAL
from runtime.verify.sizes import HEADS, WINDOW


def _cases(family: str, *switches: str) -> dict[str, dict[str, object]]:
    return {case.name: dict(case.overrides) for case in cases_for(family, switches).cases}


def test_the_default_comes_first_and_alone_without_switches() -> None:
    assert list(_cases("llama")) == [DEFAULT]
    assert next(iter(_cases("llama", "mlp_bias", "attention_bias"))) == DEFAULT


def test_booleans_are_flipped() -> None:
    cases = _cases("llama", "attention_bias", "tie_word_embeddings")
    assert cases["attention_bias=True"] == {"attention_bias": True}
    assert "tie_word_embeddings=True" in cases
    assert "tie_word_embeddings=False" in _cases("gemma2", "tie_word_embeddings")


def test_windows_are_removed_or_set() -> None:
    assert _cases("mistral", "sliding_window")["sliding_window=None"]["sliding_window"] is None
    assert _cases("phi3", "sliding_window")[f"sliding_window={WINDOW}"]["sliding_window"] == WINDOW


def test_switches_of_windows_bring_a_window_along() -> None:
    overrides = _cases("qwen2", "use_sliding_window")["use_sliding_window=True"]
    assert overrides == {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}


def test_layer_types_in_other_orders() -> None:
    patterns = [value["layer_types"] for name, value in _cases("gemma2", "layer_types").items() if name != DEFAULT]
    assert ["full_attention"] * 3 in patterns
    assert ["sliding_attention"] * 3 in patterns
    assert factory.tiny_config("gemma2").layer_types not in patterns


def test_every_rope_type() -> None:
    names = set(_cases("llama", "rope_parameters"))
    types = ("linear", "dynamic", "llama3", "yarn", "longrope")
    assert {f"rope_parameters={kind}" for kind in types} <= names
    assert "rope_parameters=partial_rotary_factor=0.25" in _cases("glm4", "rope_parameters")


def test_rope_by_layer_type() -> None:
    cases = _cases("gemma3_text", "rope_parameters")
    overrides = cases["rope_parameters=full_attention.yarn"]["rope_parameters"]
    assert isinstance(overrides, dict)
    assert overrides["full_attention"]["rope_type"] == "yarn"
    assert overrides["sliding_attention"]["rope_type"] == "default"


def test_soft_caps_and_multipliers() -> None:
    cases = _cases("gemma2", "attn_logit_softcapping", "final_logit_softcapping")
    assert {"attn_logit_softcapping=5.0", "attn_logit_softcapping=None"} <= set(cases)
    assert "final_logit_softcapping=5.0" in cases
    assert _cases("granite", "logits_scaling")["logits_scaling=1.75"] == {"logits_scaling": 1.75}


def test_router_options() -> None:
    cases = _cases("glm4_moe", "n_group", "norm_topk_prob", "first_k_dense_replace")
    assert cases["n_group=2"] == {"n_group": 2, "topk_group": 1}
    assert {"norm_topk_prob=False", "first_k_dense_replace=0", "first_k_dense_replace=2"} <= set(cases)


def test_heads() -> None:
    assert f"num_key_value_heads={HEADS}" in _cases("llama", "num_key_value_heads")


def test_activations() -> None:
    assert _cases("llama", "hidden_act")["hidden_act=gelu"] == {"hidden_act": "gelu"}


def test_nested_fields() -> None:
    cases = _cases("mpt", "attn_config.alibi")
    assert cases["attn_config.alibi=False"] == {"attn_config": {"alibi": False}}


@pytest.mark.parametrize("switch", ["attention_dropout", "use_cache", "no_such_field", "vocab_size"])
def test_nothing_is_dropped_silently(switch: str) -> None:
    listed = cases_for("llama", [switch])
    assert [case.name for case in listed.cases] == [DEFAULT]
    assert [(item.field, bool(item.reason)) for item in listed.not_varied] == [(switch, True)]


def test_one_case_per_configuration() -> None:
    """None means as many key/value heads as query heads, which another case is already."""
    assert "num_key_value_heads=None" not in _cases("llama", "num_key_value_heads")


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2_moe", "glm4_moe", "granite"])
def test_cases_can_be_configured(family: str) -> None:
    config = factory.tiny_config(family)
    names = ("rope_parameters", "layer_types", "hidden_act", "num_key_value_heads")
    switches = [name for name in names if hasattr(config, name)]
    for case in cases_for(family, switches).cases:
        made = factory.tiny_config(family, case.overrides)
        for name, value in case.overrides.items():
            if value is not None and not isinstance(value, dict):
                assert getattr(made, name) == value


@pytest.mark.parametrize("family", ["phi3", "phimoe"])
def test_longrope_goes_beyond_its_original_length(family: str) -> None:
    """Some prompts are longer, others outgrow it while decoding; and upstream's logits tell which factors were used."""
    overrides = _cases(family, "rope_parameters")["rope_parameters=longrope"]
    parameters = overrides["rope_parameters"]
    assert isinstance(parameters, dict)
    assert parameters["original_max_position_embeddings"] == SHORT_ORIGINAL
    assert min(LENGTHS) < SHORT_ORIGINAL < max(LENGTHS) and min(LENGTHS) + DECODE_STEPS > SHORT_ORIGINAL
    never_long = {f"long_{name}": parameters[f"short_{name}"] for name in ("factor", "mscale")}
    models = [
        factory.build(family, {**overrides, "rope_parameters": given})[1]
        for given in (parameters, {**parameters, **never_long})
    ]
    short, long = (torch.arange(20, 20 + length)[None] for length in (SHORT_ORIGINAL, LONG))
    with torch.no_grad():
        within, beyond = ([model(input_ids=ids).logits for model in models] for ids in (short, long))
    torch.testing.assert_close(*within)
    assert not torch.allclose(*beyond, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("phi3", r"must be one of \['longrope'\]|required keys.*longrope"),
        ("phimoe", "short_mscale field must be a number"),
    ],
)
def test_upstream_takes_longrope_alone(family: str, reason: str) -> None:
    """What its own configuration class refuses cannot be compared; it is reported as that."""
    cases = _cases(family, "rope_parameters")
    types = {name: overrides for name, overrides in cases.items() if "rope_parameters" in overrides}
    others = [o for o in types.values() if o["rope_parameters"]["rope_type"] not in ("default", "longrope")]  # type: ignore[index]
    assert len(others) == 5
    for overrides in others:
        with pytest.raises(factory.CannotBuildError, match=reason):
            factory.tiny_config(family, overrides)
