"""Models by type: registering them, and the auto class that builds or loads one."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    BertConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from runtime.training import mapping_func
from runtime.training.mapping_func import (
    AUTO_REGISTER_MODEL_MAPPING,
    create_model_from_config,
    create_model_from_pretrained,
    register_model,
)


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    mappings = [CONFIG_MAPPING, *(auto._model_mapping for auto in AUTO_REGISTER_MODEL_MAPPING.values())]
    before = [dict(it._extra_content) for it in mappings]
    yield
    for mapping, content in zip(mappings, before, strict=True):
        mapping._extra_content = content
    mapping_func._registered.clear()


def your_model() -> tuple[type[PretrainedConfig], type[PreTrainedModel]]:
    """The classes of the guide; each call makes new ones, as another import of their module would."""

    class YourModelConfig(PretrainedConfig):
        model_type = "your_model"
        width: int = 3

    class YourModel(PreTrainedModel):
        config_class = YourModelConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.layer = nn.Linear(config.width, config.width)
            self.post_init()

        def forward(self, x: torch.Tensor) -> Any:
            return self.layer(x)

    return YourModelConfig, YourModel


GENERAL = {
    "causal_lm": AutoModelForCausalLM,
    "image_text_to_text": AutoModelForImageTextToText,
    "masked_lm": AutoModelForMaskedLM,
    "general": AutoModel,
}


@pytest.mark.parametrize("general_type", GENERAL)
def test_a_registered_model_is_built_saved_and_loaded(general_type: str, tmp_path: Path) -> None:
    config_class, model_class = your_model()
    register_model(
        model_type=config_class.model_type,
        model_config=config_class,
        model_class=model_class,
        model_general_type=general_type,
    )
    auto_class, config = create_model_from_config("your_model", {"width": 5})
    assert auto_class is GENERAL[general_type] and isinstance(config, config_class) and config.width == 5
    model = auto_class.from_config(config)
    assert type(model) is model_class
    model.save_pretrained(tmp_path)
    loading = create_model_from_pretrained(tmp_path)
    assert loading is GENERAL[general_type]
    loaded = loading.from_pretrained(tmp_path)
    assert type(loaded) is model_class and torch.equal(loaded.layer.weight, model.layer.weight)


def test_the_default_is_a_causal_model() -> None:
    register_model("your_model", *your_model())
    assert create_model_from_config("your_model")[0] is AutoModelForCausalLM


def test_registering_again_is_silent_and_so_is_another_import(caplog: pytest.LogCaptureFixture) -> None:
    classes = your_model()
    for _ in range(2):
        register_model("your_model", *classes)
    register_model("your_model", *your_model())
    assert not caplog.records
    assert AutoConfig.for_model("your_model").width == 3


def test_replacing_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class OwnLlama(LlamaForCausalLM):
        pass

    register_model("llama", LlamaConfig, OwnLlama)
    assert "LlamaForCausalLM is replaced by" in caplog.text and "OwnLlama (AutoModelForCausalLM)" in caplog.text
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    assert type(AutoModelForCausalLM.from_config(config)) is OwnLlama


def test_what_does_not_belong_together_is_refused() -> None:
    config_class, model_class = your_model()
    with pytest.raises(ValueError, match=r"'causal'; did you mean 'causal_lm'\? There are: causal_lm, image_text"):
        register_model("your_model", config_class, model_class, "causal")
    with pytest.raises(ValueError, match="YourModelConfig has model_type 'your_model'"):
        register_model("my_model", config_class, model_class)
    with pytest.raises(ValueError, match=r"YourModel\.config_class is YourModelConfig, not LlamaConfig"):
        register_model("llama", LlamaConfig, model_class)
    with pytest.raises(TypeError, match="is no subclass of PreTrainedModel"):
        register_model("your_model", config_class, nn.Linear)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is no subclass of PreTrainedConfig"):
        register_model("your_model", dict, model_class)  # type: ignore[arg-type]
    assert "your_model" not in CONFIG_MAPPING


def test_an_unknown_type_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"'lama' is unknown to transformers and was not registered; did you mean"):
        create_model_from_config("lama", {})
    with pytest.raises(ValueError, match="unknown model_general_type 'text'"):
        create_model_from_config("llama", {}, "text")
    with pytest.raises(ValueError, match="unknown model_general_type 'text'"):
        create_model_from_pretrained("nowhere/at-all", "text")


def test_a_config_of_another_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="the config says model_type 'bert', but 'llama' was asked for"):
        create_model_from_config("llama", {"model_type": "bert"})
    with pytest.raises(TypeError, match="a mapping of config fields is needed, found list"):
        create_model_from_config("llama", [])  # type: ignore[arg-type]
    assert create_model_from_config("llama", {"model_type": "llama"})[1].model_type == "llama"


def test_a_type_that_no_auto_class_builds_is_an_error() -> None:
    class Bare(PretrainedConfig):
        model_type = "bare"

    AutoConfig.register("bare", Bare)
    with pytest.raises(ValueError, match=r"'bare' \(Bare\) has no model that can be built: it is in none of AutoModel"):
        create_model_from_config("bare", {})
    with pytest.raises(ValueError, match=r"'llama' has no 'image_text_to_text' model. It has: causal_lm, general"):
        create_model_from_config("llama", {}, "image_text_to_text")


def test_several_fitting_types_are_told_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert create_model_from_config("bert", {})[0] is AutoModelForCausalLM
    assert "'bert' is 'causal_lm' and 'masked_lm'; 'causal_lm' is taken" in caplog.text
    caplog.clear()
    assert create_model_from_config("bert", {}, "masked_lm")[0] is AutoModelForMaskedLM
    BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    assert create_model_from_pretrained(tmp_path) is AutoModelForMaskedLM
    assert create_model_from_pretrained(tmp_path, "causal_lm") is AutoModelForCausalLM
    BertConfig(architectures=["BertModel"]).save_pretrained(tmp_path)
    assert create_model_from_pretrained(tmp_path) is AutoModel
    assert create_model_from_config("t5", {})[0] is AutoModel
    assert not caplog.records


def test_what_was_registered_last_decides(caplog: pytest.LogCaptureFixture) -> None:
    classes = your_model()
    register_model("your_model", *classes, "causal_lm")
    register_model("your_model", *classes, "image_text_to_text")
    with caplog.at_level(logging.WARNING):
        assert create_model_from_config("your_model", {})[0] is AutoModelForImageTextToText
    assert create_model_from_config("your_model", {}, "causal_lm")[0] is AutoModelForCausalLM
    assert not caplog.records
