"""Swapping modules in place: what matches, what is left alone, and how it is taken back."""

import copy
import importlib
import subprocess
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GemmaConfig, GemmaForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from runtime.qeff import transforms
from runtime.qeff.norm import CustomRMSNormAIC
from runtime.qeff.rotary import PrecomputedRotary
from runtime.qeff.transforms import (
    CustomOpsTransform,
    GeneratedMapping,
    KVCacheTransform,
    ModuleMappingTransform,
    UnsupportedFamilyError,
)

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 19,
    "max_position_embeddings": 32,
}


class VariantRotary(PrecomputedRotary, LlamaRotaryEmbedding):
    pass


class VariantAttention(LlamaAttention):
    def __qeff_init__(self) -> None:
        """Every way in which a hook can change a module."""
        self.plain = "new"
        self.scaling = 7.0
        self.register_buffer("table", torch.ones(2), persistent=False)
        self.register_buffer("kept", torch.ones(2))
        self.q_proj.weight  # noqa: B018  # children are there
        self.o_proj = nn.Linear(16, 16, bias=False)
        self.extra = nn.Parameter(torch.zeros(1))
        del self.is_causal


class VariantMLP(LlamaMLP):
    def __qeff_init__(self) -> None:
        self.partly = True
        raise RuntimeError("the hook failed")


class Later(VariantAttention):
    def __qeff_init__(self) -> None:
        self.later = 1


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """An index with llama alone, and fresh mappings; what is imported shows in ``generated.imported``."""
    module: Any = types.ModuleType("generated_llama_for_tests")
    module.KV_CACHE_MAPPING = {LlamaRotaryEmbedding: VariantRotary, LlamaAttention: VariantAttention}
    module.CUSTOM_OPS_MAPPING = {LlamaRMSNorm: CustomRMSNormAIC}
    monkeypatch.setitem(sys.modules, module.__name__, module)
    index = transforms._Index(
        {"transformers.models.llama.modeling_llama": module.__name__, "transformers.models.absent": "not_importable"},
        {"llama": module.__name__, "absent": "not_importable"},
        {"gemma": "its rotary returns one tensor"},
    )
    monkeypatch.setattr(transforms, "_index", lambda: index)
    monkeypatch.setattr(transforms, "import_variants", importlib.import_module)  # of no generated tree
    monkeypatch.setattr(CustomOpsTransform, "_module_mapping", GeneratedMapping("CUSTOM_OPS_MAPPING"))
    monkeypatch.setattr(KVCacheTransform, "_module_mapping", GeneratedMapping("KV_CACHE_MAPPING"))
    yield module


@pytest.fixture
def model() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SMALL)).eval()


def picture(model: nn.Module) -> dict[str, Any]:
    """Everything a swap may change, by module name."""
    return {
        name: (
            type(module),
            {key: value for key, value in module.__dict__.items() if not isinstance(value, dict)},
            {
                table: {key: id(value) for key, value in module.__dict__[table].items()}
                for table in ("_parameters", "_buffers", "_modules")
            },
            list(module._modules),
            set(module._non_persistent_buffers_set),
        )
        for name, module in model.named_modules()
    }


def test_swaps_exact_classes_and_keeps_the_objects(generated: types.ModuleType, model: nn.Module) -> None:
    objects, parameters = list(model.modules()), dict(model.named_parameters())
    for transform in (CustomOpsTransform, KVCacheTransform):
        returned, transformed = transform.apply(model)
        assert returned is model and transformed
    assert CustomOpsTransform.matched(model) == {"CustomRMSNormAIC": 5}
    assert KVCacheTransform.matched(model) == {"VariantRotary": 1, "VariantAttention": 2}
    assert [module for module in model.modules() if module in objects] != objects, "the hook's new child is in the tree"
    assert dict(model.named_parameters()).keys() > parameters.keys() - {"model.layers.0.self_attn.o_proj.weight"}
    assert model.model.layers[0].self_attn.q_proj.weight is parameters["model.layers.0.self_attn.q_proj.weight"]
    assert model.model.rotary_emb.cos_cached.shape == (32, 8)


def test_a_subclass_is_not_matched(generated: types.ModuleType, model: nn.Module) -> None:
    class Subclass(LlamaRMSNorm):
        pass

    model.model.norm.__class__ = Subclass
    CustomOpsTransform.apply(model)
    assert type(model.model.norm) is Subclass
    assert CustomOpsTransform.matched(model) == {"CustomRMSNormAIC": 4}


def test_applying_again_changes_nothing(generated: types.ModuleType, model: nn.Module) -> None:
    KVCacheTransform.apply(model)
    before = picture(model)
    assert KVCacheTransform.apply(model) == (model, False)
    assert picture(model) == before


def test_undo_restores_everything(generated: types.ModuleType, model: nn.Module) -> None:
    before = picture(model)
    CustomOpsTransform.apply(model)
    KVCacheTransform.apply(model)
    assert CustomOpsTransform.undo(model) == (model, True)
    assert CustomOpsTransform.matched(model) == {} and KVCacheTransform.matched(model)
    assert KVCacheTransform.undo(model) == (model, True)
    assert picture(model) == before
    assert KVCacheTransform.undo(model) == (model, False)
    KVCacheTransform.apply(model)
    assert model.model.rotary_emb.cos_cached.shape == (32, 8)


def test_undo_keeps_changes_the_hooks_did_not_make(generated: types.ModuleType, model: nn.Module) -> None:
    KVCacheTransform.apply(model)
    model.train()
    model.model.layers[0].self_attn.note = "mine"
    KVCacheTransform.undo(model)
    assert model.model.layers[0].self_attn.training and model.model.layers[0].self_attn.note == "mine"


def test_a_copy_can_be_undone(generated: types.ModuleType, model: nn.Module) -> None:
    KVCacheTransform.apply(model)
    twin = copy.deepcopy(model)
    KVCacheTransform.undo(twin)
    assert type(twin.model.rotary_emb) is LlamaRotaryEmbedding
    assert type(model.model.rotary_emb) is VariantRotary


def test_a_failing_hook_undoes_the_whole_call(generated: types.ModuleType, model: nn.Module) -> None:
    before = picture(model)
    KVCacheTransform.register(LlamaMLP, VariantMLP)
    with pytest.raises(RuntimeError, match="the hook failed"):
        KVCacheTransform.apply(model)
    assert picture(model) == before


def test_undo_out_of_order_is_an_error(generated: types.ModuleType, model: nn.Module) -> None:
    class Second(ModuleMappingTransform):
        pass

    Second.register(VariantAttention, Later)
    KVCacheTransform.apply(model)
    Second.apply(model)
    before = picture(model)
    with pytest.raises(RuntimeError, match=r"was swapped by Second since"):
        KVCacheTransform.undo(model)
    assert picture(model) == before
    Second.undo(model)
    assert not hasattr(model.model.layers[0].self_attn, "later")
    KVCacheTransform.undo(model)
    assert type(model.model.layers[0].self_attn) is LlamaAttention


def test_registration_is_the_transforms_own(generated: types.ModuleType, model: nn.Module) -> None:
    class Mine(ModuleMappingTransform):
        pass

    Mine.register(nn.Linear, type("Wide", (nn.Linear,), {}))
    assert nn.Linear not in KVCacheTransform._module_mapping
    assert nn.Linear not in ModuleMappingTransform._module_mapping
    assert Mine.apply(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))[1]
    with pytest.raises(TypeError, match=r"not a torch.nn.Module class"):
        Mine.register(nn.Linear, int)  # type: ignore[arg-type]


def test_parents_come_first() -> None:
    seen: list[str] = []

    class Parent(nn.Sequential):
        def __qeff_init__(self) -> None:
            seen.append(f"parent sees {type(self[0]).__name__}")

    class Child(nn.Linear):
        def __qeff_init__(self) -> None:
            seen.append("child")

    class Order(ModuleMappingTransform):
        pass

    Order.register(nn.Sequential, Parent)
    Order.register(nn.Linear, Child)
    Order.apply(nn.Sequential(nn.Linear(1, 1)))
    assert seen == ["parent sees Linear", "child"]


def test_transforms_are_not_instantiated() -> None:
    for transform in (ModuleMappingTransform, CustomOpsTransform, KVCacheTransform):
        with pytest.raises(TypeError, match="apply"):
            transform()


def test_refused_family_is_an_error_with_its_reason(generated: types.ModuleType) -> None:
    model = GemmaForCausalLM(GemmaConfig(**SMALL))
    before = picture(model)
    for transform in (CustomOpsTransform, KVCacheTransform):
        with pytest.raises(UnsupportedFamilyError, match=r"'gemma'.*its rotary returns one tensor") as caught:
            transform.apply(model)
        assert (caught.value.family, caught.value.reason) == ("gemma", "its rotary returns one tensor")
    assert picture(model) == before


def test_unknown_family_is_an_error_unless_registered(generated: types.ModuleType) -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=11, n_positions=8))
    with pytest.raises(UnsupportedFamilyError, match=r"'gpt2'.*not among the 2 families"):
        KVCacheTransform.apply(model)
    variant = type("QEffGPT2LMHeadModel", (GPT2LMHeadModel,), {})
    KVCacheTransform.register(GPT2LMHeadModel, variant)
    assert KVCacheTransform.apply(model)[1] and type(model) is variant


def test_a_model_whose_type_is_not_listed_is_known_by_its_class(generated: types.ModuleType, model: nn.Module) -> None:
    """The text part of a composite type has a model type that upstream's mapping of causal LMs does not list."""
    model.config.model_type = "llama_text_model"
    with pytest.raises(UnsupportedFamilyError, match=r"'llama_text_model'.*not among the 2 families"):
        KVCacheTransform.apply(model)
    variant = type("QEffLlamaForCausalLM", (LlamaForCausalLM,), {})
    generated.KV_CACHE_MAPPING[LlamaForCausalLM] = variant
    for transform in (CustomOpsTransform, KVCacheTransform):
        assert transform.apply(model)[1]
    assert type(model) is variant and "VariantAttention" in KVCacheTransform.matched(model)


def test_modules_without_a_config_are_swapped_by_their_own_class(generated: types.ModuleType) -> None:
    norms = nn.ModuleList([LlamaRMSNorm(4), nn.LayerNorm(4)])
    assert CustomOpsTransform.apply(norms)[1]
    assert [type(norm) for norm in norms] == [CustomRMSNormAIC, nn.LayerNorm]
    assert CustomOpsTransform.apply(nn.ModuleList([nn.LayerNorm(4)]))[1] is False


def test_the_mapping_can_be_looked_at_as_a_whole(generated: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = KVCacheTransform._module_mapping
    assert mapping[LlamaAttention] is VariantAttention
    assert LlamaMLP not in mapping and nn.Linear not in mapping
    other: Any = types.ModuleType("not_importable")
    absent = type("AbsentAttention", (nn.Module,), {"__module__": "transformers.models.absent"})
    other.KV_CACHE_MAPPING = {absent: VariantMLP, LlamaMLP: VariantMLP}
    with pytest.raises(ModuleNotFoundError):
        len(mapping)
    monkeypatch.setitem(sys.modules, "not_importable", other)
    assert dict(mapping) == {**generated.KV_CACHE_MAPPING, absent: VariantMLP}
    KVCacheTransform.register(LlamaAttention, Later)
    assert mapping[LlamaAttention] is Later and len(mapping) == 3
    del mapping[LlamaAttention]
    assert mapping[LlamaAttention] is VariantAttention


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, runtime.qeff\n"
        "light = {'onnx', 'onnxscript', 'onnxruntime', 'codegen', 'libcst'}\n"
        "assert not (light | {'torch', 'transformers'}) & set(sys.modules)\n"
        "runtime.qeff.KVCacheTransform\n"
        "assert not light & set(sys.modules), light & set(sys.modules)\n"
        "assert set(runtime.qeff.__all__) <= set(dir(runtime.qeff)) and not hasattr(runtime.qeff, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_familys_own_module_comes_first(generated: types.ModuleType, model: nn.Module) -> None:
    """A family may map a class that it took from elsewhere; other models are not touched by that."""
    variant = type("QEffLinear", (nn.Linear,), {})
    generated.KV_CACHE_MAPPING[nn.Linear] = variant
    KVCacheTransform.apply(model)
    assert type(model.lm_head) is variant
    assert KVCacheTransform.apply(nn.ModuleList([nn.Linear(1, 1)]))[1] is False
