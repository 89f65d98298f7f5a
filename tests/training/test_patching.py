"""Swapping variants in and out: what is touched, what the rest of the library still sees, and how it is taken back."""

import copy
import inspect
import io
import logging
import pickle
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_variants import IDS, NOT_APPLIED, VARIANTS, apply_liger, apply_rmpad, logits, tiny
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralForCausalLM,
    PreTrainedModel,
)
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaModel,
    LlamaRMSNorm,
)

from runtime.training import kernels
from runtime.training.diagnostics import PatchError, call
from runtime.training.features import active
from runtime.training.patching import (
    PatchReport,
    Touched,
    Variant,
    apply_variants,
    undo_everything,
    undo_model,
    variants,
)
from runtime.training.swapping import suspended

CLASSES = (LlamaRMSNorm, LlamaMLP, LlamaAttention, LlamaModel, LlamaForCausalLM)
CONSTRUCTORS = {cls: cls.__init__ for cls in CLASSES}
POST_INIT = PreTrainedModel.post_init


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "available", lambda: None)
    yield
    undo_everything()
    assert {cls: cls.__init__ for cls in CLASSES} == CONSTRUCTORS
    assert PreTrainedModel.post_init is POST_INIT


def upstream_only(model: nn.Module) -> bool:
    return all(
        type(it).__module__.startswith(("transformers.", "torch.")) and not any("regraft" in key for key in vars(it))
        for it in model.modules()
    )


# -- instances


def test_it_touches_what_the_features_need_and_says_so() -> None:
    model, plain = tiny(), logits(tiny())
    report = apply_variants(VARIANTS, NOT_APPLIED, model, swiglu=True, rms_norm=True, rope=False)
    assert report.touched == {"LlamaMLP": Touched(2, ("swiglu",)), "LlamaRMSNorm": Touched(5, ("rms_norm",))}
    assert report.scope == "instance" and report.not_applied == {}
    assert "LlamaMLP x2 (swiglu)" in str(report)
    assert type(model.model.layers[0].self_attn) is LlamaAttention
    assert active(model.model.layers[0].mlp, "swiglu") and not active(model.model.layers[0].mlp, "rmpad")
    assert not torch.allclose(logits(model), plain)
    report.undo()
    assert upstream_only(model) and torch.equal(logits(model), plain) and report.touched == {}
    report.undo()


def test_a_variant_needed_for_one_feature_leaves_the_others_off() -> None:
    model = tiny()
    apply_rmpad(model)
    attention = model.model.layers[0].self_attn
    assert active(attention, "rmpad") and not active(attention, "rope")


@pytest.mark.parametrize("first_undone", [0, 1])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_features_of_several_applications_add_up_and_come_off_in_any_order(
    order: tuple[int, int], first_undone: int
) -> None:
    model, plain = tiny(), logits(tiny())
    functions = [apply_rmpad, lambda it: apply_liger(model=it)]
    reports: list[PatchReport] = [functions[index](model) for index in order]
    both = {"rmpad", "rope"}
    attention = model.model.layers[0].self_attn
    assert {it for it in both if active(attention, it)} == both
    reports[first_undone].undo()
    left = "rmpad" if order[1 - first_undone] == 0 else "rope"
    assert {it for it in both if active(attention, it)} == {left}
    reports[1 - first_undone].undo()
    assert upstream_only(model) and torch.equal(logits(model), plain)


def test_the_same_again_changes_nothing() -> None:
    model = tiny()
    first = apply_liger(model=model)
    once = logits(model)
    second = apply_liger(model=model)
    assert torch.equal(logits(model), once) and first.touched == second.touched
    second.undo()
    assert torch.equal(logits(model), once)
    assert undo_model(model) == 5 + 2 + 2 + 1
    assert upstream_only(model) and undo_model(model) == 0
    first.undo()


def test_as_a_context_it_is_taken_back_even_after_an_error() -> None:
    model = tiny()
    with pytest.raises(KeyError), apply_liger(model=model):
        assert not upstream_only(model)
        raise KeyError
    assert upstream_only(model)


def test_other_models_are_not_touched() -> None:
    student, teacher = tiny(), tiny()
    plain = logits(teacher)
    apply_liger(model=student, use_rmpad=True)
    assert upstream_only(teacher) and torch.equal(logits(teacher), plain)


def test_gradients_flow_to_the_same_parameters() -> None:
    model = tiny()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    apply_liger(model=model, use_rmpad=True)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# -- what does not match


def test_an_object_that_matches_nothing_is_an_error() -> None:
    with pytest.raises(PatchError, match=r"nothing matched.*Linear.*LlamaMLP"):
        apply_rmpad(nn.Linear(2, 2))


def test_a_feature_that_touches_nothing_is_reported_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    table = {LlamaMLP: VARIANTS[LlamaMLP]}
    report = apply_variants(table, {}, tiny(), swiglu=True, rope=True)
    assert report.not_applied == {"rope": "no class of this model takes it"}
    assert "rope is not applied" in caplog.text
    with pytest.raises(PatchError, match="rope is not applied"), call(strict=True, asked=["rope"]):
        apply_variants(table, {}, tiny(), swiglu=True, rope=True)


def test_only_who_asked_for_it_is_warned_that_a_family_has_no_such_thing(caplog: pytest.LogCaptureFixture) -> None:
    with call(strict=True, asked=["rope"]):
        report = apply_liger(model=tiny())
    assert report.not_applied == NOT_APPLIED and not caplog.records
    with pytest.raises(PatchError, match="experts is not applied: no class that"), call(strict=True, asked=["experts"]):
        apply_liger(model=tiny())


def test_without_kernels_padding_is_removed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kernels, "available", lambda: "no device")
    model = tiny()
    report = apply_liger(model=model, use_rmpad=True)
    assert set(report.touched) == {"LlamaAttention", "LlamaModel", "LlamaForCausalLM"}
    assert report.not_applied["rms_norm"] == "no device" and len(caplog.records) == 1
    assert "fused_linear_cross_entropy, rms_norm, rope, swiglu not applied: no device" in str(report)
    with pytest.raises(PatchError, match="no device"), call(strict=True, asked=[]):
        apply_liger(model=tiny())


def test_a_strict_error_changes_nothing() -> None:
    model = tiny()
    table = {LlamaMLP: VARIANTS[LlamaMLP]}
    with pytest.raises(PatchError), call(strict=True, asked=["rope"]):
        apply_variants(table, {}, model, swiglu=True, rope=True)
    assert upstream_only(model)


def test_contradicting_losses_are_refused() -> None:
    with pytest.raises(PatchError, match="fused_linear_cross_entropy=False"):
        apply_liger(model=tiny(), cross_entropy=True)


class OwnHead(LlamaForCausalLM):
    pass


def test_a_subclass_is_left_alone_which_packed_rows_do_not_allow(caplog: pytest.LogCaptureFixture) -> None:
    model = OwnHead(tiny().config)
    with pytest.raises(PatchError, match="OwnHead derive from LlamaForCausalLM"):
        apply_rmpad(model)
    assert upstream_only(model.model)
    apply_liger(model=model)
    assert type(model) is OwnHead and "OwnHead derive from LlamaForCausalLM" in caplog.text


def test_a_model_around_the_packed_one_that_knows_nothing_of_it_is_refused() -> None:
    model = LlamaForSequenceClassification(tiny().config)
    with pytest.raises(PatchError, match=r"LlamaForSequenceClassification has no variant"):
        apply_rmpad(model)
    assert upstream_only(model)
    apply_liger(model=model, fused_linear_cross_entropy=False)
    apply_rmpad(tiny().model)


def test_a_forward_on_the_instance_would_hide_the_variant() -> None:
    model = tiny()
    model.forward = model.forward
    with pytest.raises(PatchError, match=r"the model .LlamaForCausalLM. has a forward of its own"):
        apply_rmpad(model)


def test_a_second_variant_for_the_same_class_is_refused_until_the_first_is_undone() -> None:
    class Other(LlamaMLP):
        pass

    other = variants({LlamaMLP: Variant(Other, "other")})
    model = tiny()
    first = apply_variants(VARIANTS, {}, model, swiglu=True)
    with pytest.raises(PatchError, match="LlamaMLP is replaced by a class of small_variants already"):
        apply_variants(other, {}, model, other=True)
    first.undo()
    apply_variants(other, {}, model, other=True)
    assert active(model.model.layers[0].mlp, "other")


def test_variants_are_checked_when_they_are_declared() -> None:
    with pytest.raises(TypeError, match=r"not a torch.nn.Module class"):
        Variant(int, "rope")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no features"):
        Variant(LlamaMLP)
    with pytest.raises(TypeError, match="is the variant of LlamaMLP already"):

        class Both(LlamaMLP, LlamaRMSNorm):
            pass

        table = {LlamaMLP: Variant(Both, "a"), LlamaRMSNorm: Variant(Both, "a")}
        variants(table)


# -- what the library still sees


def test_names_stay_upstreams(tmp_path: Path) -> None:
    model = tiny()
    apply_liger(model=model, use_rmpad=True)
    assert {type(it).__name__ for it in model.modules()} == {type(it).__name__ for it in tiny().modules()}
    assert all(isinstance(it, LlamaRMSNorm) for it in [model.model.norm, model.model.layers[0].input_layernorm])
    assert model._no_split_modules == tiny()._no_split_modules
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LlamaForCausalLM and loaded.config.architectures == ["LlamaForCausalLM"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_patched_and_independent(how: str) -> None:
    model, plain = tiny(), logits(tiny())
    report = apply_liger(model=model)
    patched = logits(model)
    if how == "deepcopy":
        copied = copy.deepcopy(model)
    elif how == "pickle":
        copied = pickle.loads(pickle.dumps(model))
    else:
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        copied = torch.load(buffer, weights_only=False)
    assert torch.equal(logits(copied), patched)
    report.undo()
    assert torch.equal(logits(copied), patched) and upstream_only(model)
    undo_everything()
    assert upstream_only(copied) and torch.equal(logits(copied), plain)


def test_the_state_dict_is_upstreams() -> None:
    model = tiny()
    before = model.state_dict()
    apply_liger(model=model, use_rmpad=True)
    assert list(model.state_dict()) == list(before)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    assert not any(tiny().load_state_dict(torch.load(buffer)))


def test_hidden_states_and_attentions_are_still_recorded() -> None:
    model = tiny(attn_implementation="eager")
    with torch.no_grad():
        expected = model(IDS, output_hidden_states=True, output_attentions=True)
    fresh = tiny(attn_implementation="eager")
    apply_variants(VARIANTS, {}, fresh, fused_linear_cross_entropy=True)
    apply_variants(VARIANTS, {}, fresh, rmpad=True)
    for it in fresh.modules():
        if hasattr(it, "regraft_features"):
            it.regraft_features = frozenset()
    with torch.no_grad():
        found = fresh(IDS, output_hidden_states=True, output_attentions=True)
    assert len(found.hidden_states) == len(expected.hidden_states) == 3
    assert len(found.attentions) == len(expected.attentions) == 2
    assert torch.equal(found.hidden_states[1], expected.hidden_states[1])


def test_modules_can_be_visited_and_checkpointed() -> None:
    model = tiny()
    apply_liger(model=model)
    seen: list[nn.Module] = []
    model.apply(seen.append)
    assert len(seen) == len(list(tiny().modules()))
    model.train()
    grads = []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append(model.model.embed_tokens.weight.grad.clone())
    assert model.is_gradient_checkpointing and torch.equal(*grads)
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


def test_the_attention_implementation_can_still_be_changed() -> None:
    model = tiny()
    apply_rmpad(model)
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"


def test_weights_can_be_initialised_and_embeddings_resized() -> None:
    model = tiny()
    apply_liger(model=model, use_rmpad=True)
    model.init_weights()
    model.resize_token_embeddings(23)
    assert model.lm_head.out_features == 23


def test_what_transformers_reads_from_source_files_is_answered_by_upstream() -> None:
    for upstream in (MixtralForCausalLM, BloomForCausalLM):
        variant = type(f"Rmpad{upstream.__name__}", (upstream,), {})
        made = variants({upstream: Variant(variant, "rmpad")})[upstream].cls
        assert made._can_set_experts_implementation() == upstream._can_set_experts_implementation()
        assert made._can_set_attn_implementation() == upstream._can_set_attn_implementation()


# -- generation


def test_a_forward_that_was_wrapped_on_the_instance_since_generates_as_upstream_does() -> None:
    model = tiny()
    apply_rmpad(model)
    model.forward = types.MethodType(type(model).forward, model)
    with suspended(model):
        assert not any(active(it, "rmpad") for it in model.modules())
        assert torch.equal(logits(model), logits(tiny()))
    assert not torch.equal(logits(model), logits(tiny()))


def test_suspended_models_generate_as_upstream_does() -> None:
    model, reference = tiny(), tiny()
    apply_liger(model=model, use_rmpad=True)
    patched = logits(model)
    with suspended(model) as count:
        assert count == 5 + 2 + 2 + 1 + 1 and type(model) is LlamaForCausalLM
        ours = model.generate(IDS, max_new_tokens=4, do_sample=False)
        with suspended(model) as inner:
            assert inner == 0
        assert type(model) is LlamaForCausalLM
    theirs = reference.generate(IDS, max_new_tokens=4, do_sample=False)
    assert torch.equal(ours, theirs) and torch.equal(logits(model), patched)


def test_patches_come_back_after_an_error_and_cannot_change_meanwhile() -> None:
    model = tiny()
    report = apply_rmpad(model)
    with pytest.raises(KeyError), suspended(model):
        for forbidden in (report.undo, lambda: undo_model(model), lambda: apply_rmpad(model), undo_everything):
            with pytest.raises(PatchError, match="generates just now"):
                forbidden()
        raise KeyError
    assert active(model, "rmpad") and type(model) is not LlamaForCausalLM


# -- constructors


def test_models_built_later_are_patched_and_those_before_are_not(caplog: pytest.LogCaptureFixture) -> None:
    teacher, plain = tiny(), logits(tiny())
    report = apply_liger(use_rmpad=True)
    assert "built already and left as they are" in caplog.text and "LlamaForCausalLM x1" in caplog.text
    assert report.scope == "class" and report.touched["LlamaMLP"] == Touched(0, ("swiglu",))
    student = tiny()
    assert report.touched["LlamaMLP"] == Touched(2, ("swiglu",))
    expected = tiny()
    apply_liger(model=expected, use_rmpad=True)
    assert torch.equal(logits(student), logits(expected))
    assert upstream_only(teacher) and torch.equal(logits(teacher), plain)
    report.undo()
    assert upstream_only(student) and upstream_only(tiny()) and torch.equal(logits(student), plain)


def test_every_way_to_build_a_model_is_followed(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    with apply_rmpad() as report:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        built = AutoModelForCausalLM.from_config(loaded.config)
        with torch.device("meta"):
            meta = LlamaForCausalLM(loaded.config)
        assert all(active(it, "rmpad") and active(it.model, "rmpad") for it in (loaded, built, meta))
        assert report.touched["LlamaModel"].modules == 3


def test_before_and_after_construction_go_together() -> None:
    before = apply_liger()
    model = tiny()
    once = logits(model)
    after = apply_liger(model=model)
    assert torch.equal(logits(model), once) and after.touched["LlamaMLP"] == Touched(2, ("swiglu",))
    before.undo()
    assert torch.equal(logits(model), once)
    after.undo()
    assert upstream_only(model)


def test_constructors_ordered_twice_are_undone_twice() -> None:
    first, second = apply_liger(), apply_rmpad()
    model = tiny()
    assert active(model.model.layers[0].self_attn, "rope") and active(model.model.layers[0].self_attn, "rmpad")
    first.undo()
    assert not active(tiny().model.layers[0].self_attn, "rope") and active(tiny(), "rmpad")
    second.undo()
    assert upstream_only(tiny()) and upstream_only(model)


def test_a_constructor_that_somebody_wrapped_since_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    report = apply_variants(VARIANTS, {}, swiglu=True)
    ours = LlamaMLP.__init__
    seen = []

    def theirs(self: Any, *args: Any, **kwargs: Any) -> None:
        ours(self, *args, **kwargs)
        seen.append(self)

    monkeypatch.setattr(LlamaMLP, "__init__", theirs)
    report.undo()
    assert upstream_only(tiny()) and len(seen) == 2
    again = apply_variants(VARIANTS, {}, swiglu=True)
    assert active(tiny().model.layers[0].mlp, "swiglu")
    monkeypatch.undo()
    again.undo()


class OwnAttention(LlamaAttention):
    pass


def test_building_what_knows_nothing_of_packed_rows_is_refused_while_padding_is_removed() -> None:
    config = tiny().config
    with apply_rmpad():
        for unknown in (OwnHead, LlamaForSequenceClassification):
            with pytest.raises(PatchError, match=f"{unknown.__name__} has no variant"):
                unknown(config)
        with pytest.raises(PatchError, match="OwnAttention derives from LlamaAttention"):
            OwnAttention(config, layer_idx=0)
        GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=9))
    LlamaForSequenceClassification(config)
    with apply_liger():
        assert active(LlamaForSequenceClassification(config).model.layers[0].mlp, "swiglu")


def test_the_constructors_signature_stays() -> None:
    before = inspect.signature(LlamaForCausalLM)
    with apply_rmpad():
        assert inspect.signature(LlamaForCausalLM) == before


# -- wrappers


class Wrapper(nn.Module):
    """As PEFT's: the model lies within, and the config is shown outside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model
        self.config = model.config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


def test_a_wrapped_model_is_patched_inside() -> None:
    wrapped, expected = Wrapper(tiny()), tiny()
    apply_liger(model=wrapped, use_rmpad=True)
    apply_liger(model=expected, use_rmpad=True)
    assert torch.equal(logits(wrapped), logits(expected))
    assert undo_model(wrapped) > 0 and upstream_only(wrapped.base_model)


def test_a_compiled_model_compiles_again() -> None:
    model = tiny()
    compiled = torch.compile(model, backend="eager")
    plain = logits(compiled)
    report = apply_liger(model=compiled)
    patched = logits(model)
    assert not torch.allclose(patched, plain) and torch.allclose(logits(compiled), patched)
    with suspended(compiled):
        assert torch.allclose(logits(compiled), plain)
    report.undo()
    assert torch.allclose(logits(compiled), plain) and upstream_only(model)


@pytest.fixture
def _process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("patch_first", [True, False])
def test_fully_sharded_modules_are_patched_before_or_after(patch_first: bool) -> None:
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    model, expected, plain = tiny(), tiny(), logits(tiny())
    apply_liger(model=expected, use_rmpad=True)
    if patch_first:
        report = apply_liger(model=model, use_rmpad=True)
    for layer in model.model.layers:
        fully_shard(layer.mlp, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if not patch_first:
        report = apply_liger(model=model, use_rmpad=True)
    assert report.touched["LlamaMLP"].modules == 2 and report.touched["LlamaForCausalLM"].modules == 1
    assert torch.allclose(logits(model), logits(expected))
    with suspended(model):
        assert isinstance(model, FSDPModule) and torch.allclose(logits(model), plain)
    assert torch.allclose(logits(model), logits(expected))
    assert isinstance(model, FSDPModule) and type(model).__name__ == "FSDPLlamaForCausalLM"
    assert type(model.model.layers[0]).__name__ == f"FSDP{LlamaDecoderLayer.__name__}"
    report.undo()
    assert isinstance(model, FSDPModule) and torch.allclose(logits(model), plain)
    assert not any(active(it, "swiglu") or hasattr(it, "regraft_upstream") for it in model.modules())


def test_what_it_logs_names_what_it_touched(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        apply_liger(model=tiny())
    assert "LlamaRMSNorm x5 (rms_norm)" in caplog.text and "experts not applied" in caplog.text
