"""The registry of patches: registering, looking up, filtering keywords, and speaking where something is wrong."""

import ast
import importlib
import logging
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from small_variants import IDS, NOT_APPLIED, VARIANTS, apply_liger, apply_rmpad, logits, tiny
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from runtime.training import kernels
from runtime.training.diagnostics import PatchError
from runtime.training.features import KEYWORDS, active
from runtime.training.monkey_patch import MONKEY_PATCHER, MonkeyPatcher, RefusedFamilyError, UnknownPatchError
from runtime.training.patching import PatchReport, PatchReports, undo_everything


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(kernels, "available", lambda: None)
    yield
    undo_everything()


@pytest.fixture
def patcher() -> MonkeyPatcher:
    made = MonkeyPatcher()
    made.register("llama", "liger")(apply_liger)
    made.register("code_llama", "liger")(apply_liger)
    made.register("llama", "rmpad")(apply_rmpad)
    return made


# -- registering


def test_the_function_is_returned_unchanged_and_decorators_stack() -> None:
    patcher = MonkeyPatcher()

    def patch(model: Any = None) -> None: ...

    assert patcher.register("a", "x")(patcher.register("b", "any type at all")(patch)) is patch
    assert patcher["a"] == {"x": patch} and patcher["b"] == {"any type at all": patch}


def test_overwriting_is_warned_of_and_importing_again_is_not(
    patcher: MonkeyPatcher, caplog: pytest.LogCaptureFixture
) -> None:
    patcher.register("llama", "liger")(apply_liger)
    again = types.FunctionType(apply_liger.__code__, apply_liger.__globals__)
    again.__module__, again.__qualname__ = apply_liger.__module__, apply_liger.__qualname__
    patcher.register("llama", "liger")(again)
    assert not caplog.records
    patcher.register("llama", "liger")(apply_rmpad)
    assert "patch 'liger' of 'llama': small_variants.apply_liger is overwritten by" in caplog.text
    assert patcher["llama"]["liger"] is apply_rmpad


def test_only_functions_with_a_name_for_them_can_be_registered() -> None:
    with pytest.raises(TypeError, match="not callable"):
        MonkeyPatcher().register("a", "b")(3)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="model_type has to be a name"):
        MonkeyPatcher().register("", "b")
    with pytest.raises(TypeError, match="patch_type has to be a name"):
        MonkeyPatcher().register("a", ["b"])  # type: ignore[arg-type]


def test_it_is_a_mapping_that_looking_up_does_not_change(patcher: MonkeyPatcher) -> None:
    assert list(patcher) == list(patcher.keys()) == ["code_llama", "llama"] and len(patcher) == 2
    assert "llama" in patcher and "unknown" not in patcher and None not in patcher
    for _ in range(2):
        with pytest.raises(KeyError):
            patcher["unknown"]
    assert "unknown" not in patcher and patcher.get("unknown") is None
    assert dict(patcher.items())["llama"] == {"liger": apply_liger, "rmpad": apply_rmpad}
    assert {"liger": apply_liger} in list(patcher.values())
    assert "'llama': ['liger', 'rmpad']" in str(patcher)
    with pytest.raises(TypeError):
        patcher["llama"]["liger"] = apply_rmpad  # type: ignore[index]
    patcher["new"] = {"own": apply_rmpad}
    assert patcher["new"] == {"own": apply_rmpad}
    del patcher["new"]
    assert "new" not in patcher and hash(patcher) and patcher == patcher and patcher != MonkeyPatcher()


# -- applying


def test_several_types_are_applied_in_order_and_undone_together(patcher: MonkeyPatcher) -> None:
    model = tiny()
    reports = patcher.apply_monkey_patch_to_instance(model, ["liger", "rmpad"], rope=True)
    assert isinstance(reports, PatchReports)
    assert [(it.model_type, it.patch_type) for it in reports] == [("llama", "liger"), ("llama", "rmpad")]
    attention = model.model.layers[0].self_attn
    assert active(attention, "rope") and active(attention, "rmpad")
    with reports:
        pass
    assert not active(attention, "rope") and torch.equal(logits(model), logits(tiny()))


def test_before_construction_it_takes_effect(patcher: MonkeyPatcher) -> None:
    with patcher.apply_monkey_patch("llama", "rmpad") as report:
        model = tiny()
        assert active(model, "rmpad") and report.touched["LlamaForCausalLM"].modules == 1
    assert not active(model, "rmpad")


def test_an_instance_can_be_undone_by_itself_and_all_at_once(patcher: MonkeyPatcher) -> None:
    one, two = tiny(), tiny()
    for model in (one, two):
        patcher.apply_monkey_patch_to_instance(model, "rmpad")
    assert patcher.undo(one) == 4 and not active(one, "rmpad") and active(two, "rmpad")
    patcher.apply_monkey_patch("llama", "rmpad")
    patcher.undo_all()
    assert not active(two, "rmpad") and not active(tiny(), "rmpad") and "llama" in patcher


def test_generation_is_upstreams_and_touches_one_model(patcher: MonkeyPatcher) -> None:
    model, other = tiny(), tiny()
    for it in (model, other):
        patcher.apply_monkey_patch_to_instance(it, ["liger", "rmpad"])
    before = logits(model)
    with patcher.generation(model) as same:
        assert same is model and active(other, "rmpad")
        ours = model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(ours, tiny().generate(IDS, max_new_tokens=3, do_sample=False))
    assert torch.equal(logits(model), before)
    with patcher.generation(tiny()):
        pass


def test_an_unknown_model_type_is_an_error_that_lists_what_there_is(patcher: MonkeyPatcher) -> None:
    with pytest.raises(UnknownPatchError, match=r"'lama'; did you mean 'llama'.* Registered: code_llama, llama\."):
        patcher.apply_monkey_patch("lama", "liger")
    with pytest.raises(UnknownPatchError, match=r"'gpt2'\. Registered: code_llama, llama"):
        patcher.apply_monkey_patch_to_instance(
            GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=1, n_layer=1, vocab_size=9)), "liger"
        )
    for empty in ("", None):
        with pytest.raises(PatchError, match="a model type is needed"):
            patcher.apply_monkey_patch(empty, "liger")  # type: ignore[arg-type]


def test_an_unknown_patch_type_is_an_error_before_anything_is_applied(patcher: MonkeyPatcher) -> None:
    model = tiny()
    with pytest.raises(UnknownPatchError, match=r"has no patch 'ligr'; did you mean 'liger'\? .*: liger, rmpad"):
        patcher.apply_monkey_patch_to_instance(model, ["rmpad", "ligr"])
    assert not active(model, "rmpad")
    with pytest.raises(PatchError, match="no patch type was given"):
        patcher.apply_monkey_patch_to_instance(model, [])


def test_what_came_before_a_failing_patch_is_undone(patcher: MonkeyPatcher) -> None:
    @patcher.register("llama", "fails")
    def fails(model: Any = None) -> None:
        raise RuntimeError("on purpose")

    model = tiny()
    with pytest.raises(RuntimeError, match="on purpose"):
        patcher.apply_monkey_patch_to_instance(model, ["rmpad", "fails"])
    assert not active(model, "rmpad")


def test_an_object_that_is_no_model_is_an_error(patcher: MonkeyPatcher) -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.Module is needed"):
        patcher.apply_monkey_patch_to_instance(object(), "liger")  # type: ignore[arg-type]
    with pytest.raises(PatchError, match="Linear has no config with a model type"):
        patcher.apply_monkey_patch_to_instance(nn.Linear(1, 1), "liger")


def test_parts_with_a_registered_type_are_named(patcher: MonkeyPatcher) -> None:
    outer = nn.Module()
    outer.config = types.SimpleNamespace(model_type="composite")
    outer.language_model = tiny().model
    with pytest.raises(UnknownPatchError, match=r"Parts of the model have registered types: language_model \(llama\)"):
        patcher.apply_monkey_patch_to_instance(outer, "liger")


@pytest.mark.parametrize("config", [None, {"model_type": "custom"}], ids=["none", "a dictionary"])
def test_the_type_of_a_wrapped_model_is_found(patcher: MonkeyPatcher, config: Any) -> None:
    outer = nn.Module()
    if config is not None:
        outer.config = config
    outer.module = tiny()
    patcher.apply_monkey_patch_to_instance(outer, "rmpad")
    assert active(outer.module, "rmpad")
    compiled = torch.compile(tiny(), backend="eager")
    assert patcher.apply_monkey_patch_to_instance(compiled, "rmpad").touched["LlamaForCausalLM"].modules == 1
    assert active(compiled._orig_mod, "rmpad")


# -- keywords


def recording(patcher: MonkeyPatcher, signature: str, patch_type: str = "own") -> dict[str, Any]:
    seen: dict[str, Any] = {}
    scope: dict[str, Any] = {"seen": seen}
    exec(f"def patch({signature}):\n    seen.update({{k: v for k, v in locals().items()}})", scope)
    patcher.register("llama", patch_type)(scope["patch"])
    return seen


def test_a_shared_dictionary_gives_each_patch_what_it_takes(
    patcher: MonkeyPatcher, caplog: pytest.LogCaptureFixture
) -> None:
    shared = {"rope": True, "swiglu": False, "use_rmpad": True, "frames": 4, "geglu": True}
    seen = recording(patcher, "frames, model=None")
    recording(patcher, "position, /, *, rope=False", "other")
    patcher.apply_monkey_patch("llama", ["liger", "own"], **shared)
    assert seen == {"frames": 4, "model": None} and not caplog.records
    with pytest.raises(TypeError, match="position"):
        patcher.apply_monkey_patch("llama", "other", position=1)


def test_a_patch_with_keyword_arguments_gets_everything(
    patcher: MonkeyPatcher, caplog: pytest.LogCaptureFixture
) -> None:
    seen = recording(patcher, "*, rope=True, model=None, **kwargs")
    model = tiny()
    patcher.apply_monkey_patch_to_instance(model, "own", swiglu=False, entirely_new=3)
    assert seen == {"rope": True, "model": model, "kwargs": {"swiglu": False, "entirely_new": 3}}
    assert not caplog.records
    patcher.apply_monkey_patch("llama", "own", rms_nrom=True)
    assert "'rms_nrom' is taken by nothing but **kwargs" in caplog.text and "'rms_norm'" in caplog.text


def test_a_keyword_that_nothing_takes_is_warned_of_with_the_nearest(
    patcher: MonkeyPatcher, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny()
    report = patcher.apply_monkey_patch_to_instance(model, "liger", use_rmpd=True)
    assert "no registered patch takes 'use_rmpd', it has no effect; did you mean 'use_rmpad'" in caplog.text
    assert report.touched and not active(model, "rmpad")
    with pytest.raises(PatchError, match="'use_rmpd'"):
        patcher.apply_monkey_patch_to_instance(model, "liger", use_rmpd=True, strict=True)


@pytest.mark.parametrize("keyword", sorted(KEYWORDS))
def test_the_keywords_of_generated_patches_are_known_before_they_are_imported(
    keyword: str, caplog: pytest.LogCaptureFixture
) -> None:
    patcher = MonkeyPatcher(strict=True)
    recording(patcher, "frames=1")
    patcher.apply_monkey_patch("llama", "own", **{keyword: True})


def test_a_patch_that_takes_no_model_cannot_patch_one(patcher: MonkeyPatcher) -> None:
    recording(patcher, "rope=True")
    with pytest.raises(PatchError, match="takes no `model`"):
        patcher.apply_monkey_patch_to_instance(tiny(), "own")


def test_a_model_among_the_keywords_is_patched_as_an_instance(patcher: MonkeyPatcher) -> None:
    model = tiny()
    assert patcher.apply_monkey_patch("llama", "rmpad", model=model).scope == "instance"
    assert active(model, "rmpad") and not active(tiny(), "rmpad")


# -- strict


def test_strict_holds_for_a_registry_or_for_a_call(patcher: MonkeyPatcher) -> None:
    with pytest.raises(PatchError, match="experts is not applied"):
        patcher.apply_monkey_patch_to_instance(tiny(), "liger", experts=True, strict=True)
    patcher.apply_monkey_patch_to_instance(tiny(), "liger", strict=True)
    patcher.strict = True
    with pytest.raises(PatchError, match="experts is not applied"):
        patcher.apply_monkey_patch_to_instance(tiny(), "liger", experts=True)
    patcher.apply_monkey_patch_to_instance(tiny(), "liger", experts=True, strict=False)
    with pytest.raises(PatchError, match="is overwritten by"):
        patcher.register("llama", "liger")(apply_rmpad)
    assert patcher["llama"]["liger"] is apply_liger


# -- patches that say nothing


def test_a_patch_without_a_report_works_but_cannot_be_undone(
    patcher: MonkeyPatcher, caplog: pytest.LogCaptureFixture
) -> None:
    recording(patcher, "model=None")
    model = tiny()
    report = patcher.apply_monkey_patch_to_instance(model, "own")
    assert isinstance(report, PatchReport) and report.scope == "unknown" and not report.undoable
    assert str(report) == "patch 'own' of 'llama' [unknown]: nothing touched"
    with pytest.raises(PatchError, match="patch 'own' of 'llama' cannot be undone"):
        report.undo()
    with pytest.raises(PatchError, match="cannot be a context"), report:
        pass
    with patcher.generation(model):
        pass
    assert "stay in force: llama/own" in caplog.text
    with pytest.raises(PatchError, match="cannot be undone: llama/own"):
        patcher.undo(model, strict=True)
    patcher.apply_monkey_patch("llama", "own")
    with pytest.raises(PatchError, match="stay in force: llama/own"), patcher.generation(tiny(), strict=True):
        pass
    patcher.undo_all()
    assert "returned no PatchReport: llama/own" in caplog.text


# -- generated families

FAMILY = """
    from small_variants import apply_liger as _apply_liger, apply_rmpad as _apply_rmpad
    from fake_tree.rmpad.registry import PATCHER

    @PATCHER.register("code_llama", "liger")
    @PATCHER.register("llama", "liger")
    def apply_liger_kernel_to_llama(rope: bool = True, use_rmpad: bool = False, model=None):
        return _apply_liger(rope=rope, use_rmpad=use_rmpad, model=model)

    @PATCHER.register("llama", "rmpad")
    def apply_rmpad_to_llama(model=None):
        return _apply_rmpad(model=model)
"""
INDEX = """
    MODULES = {"transformers.models.llama.modeling_llama": "fake_tree.rmpad.modeling_llama"}
    FAMILIES = {
        "llama": "fake_tree.rmpad.modeling_llama",
        "code_llama": "fake_tree.rmpad.modeling_llama",
        "broken": "fake_tree.rmpad.modeling_broken",
        "forgetful": "fake_tree.rmpad.modeling_llama",
    }
    REFUSED = {"rwkv": "the state of one sequence leaks into the next"}
"""
REGISTRY = """
    from runtime.training.monkey_patch import MonkeyPatcher
    PATCHER = MonkeyPatcher(index="fake_tree.rmpad")
"""


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MonkeyPatcher]:
    package = tmp_path / "fake_tree" / "rmpad"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    head = f'[upstream]\ndistribution = "transformers"\nversion = "{transformers.__version__}"\n[compiler]\n'
    (package.parent / "MANIFEST.toml").write_text(head)
    files = {
        "__init__": INDEX,
        "registry": REGISTRY,
        "modeling_llama": FAMILY,
        "modeling_broken": "import nowhere_at_all",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("fake_tree.rmpad.registry").PATCHER
    for name in [it for it in sys.modules if it.startswith("fake_tree")]:
        del sys.modules[name]


def test_a_generated_family_is_imported_when_it_is_asked_for(generated: MonkeyPatcher) -> None:
    assert "llama" in generated and list(generated) == ["broken", "code_llama", "forgetful", "llama"]
    assert "fake_tree.rmpad.modeling_llama" not in sys.modules
    model = tiny()
    report = generated.apply_monkey_patch_to_instance(model, "liger", use_rmpad=True)
    assert "fake_tree.rmpad.modeling_llama" in sys.modules
    assert active(model, "rmpad") and report.touched["LlamaMLP"].modules == 2
    assert set(generated["llama"]) == {"liger", "rmpad"} and set(generated["code_llama"]) == {"liger"}


def test_a_refused_type_says_why_unless_a_user_registered_it(generated: MonkeyPatcher) -> None:
    with pytest.raises(RefusedFamilyError, match="'rwkv' is not supported: the state of one sequence leaks") as caught:
        generated.apply_monkey_patch("rwkv", "rmpad")
    assert caught.value.family == "rwkv" and caught.value.reason.startswith("the state")
    generated.register("rwkv", "own")(apply_rmpad)
    with generated.apply_monkey_patch("rwkv", "own"):
        pass
    with pytest.raises(RefusedFamilyError):
        generated.apply_monkey_patch("rwkv", "rmpad")


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_user_comes_before_what_was_generated_whichever_is_imported_first(
    generated: MonkeyPatcher, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    def own(model: Any = None) -> PatchReport:
        return apply_rmpad(model)

    if when == "after":
        assert generated["llama"]
    generated.register("llama", "liger")(own)
    model = tiny()
    generated.apply_monkey_patch_to_instance(model, ["rmpad", "liger"])
    assert generated["llama"]["liger"] is own and not active(model.model.layers[0].mlp, "swiglu")
    assert len(caplog.records) == 1 and "modeling_llama.apply_liger_kernel_to_llama is overwritten" in caplog.text
    del generated["llama"]
    assert generated["llama"]["liger"] is not own


def test_a_family_that_cannot_be_imported_is_an_error(generated: MonkeyPatcher) -> None:
    with pytest.raises(PatchError, match=r"'broken' cannot be imported from fake_tree\.rmpad\.modeling_broken.*here"):
        generated.apply_monkey_patch("broken", "liger")
    with pytest.raises(PatchError, match=r"modeling_llama registers nothing for 'forgetful'"):
        generated.apply_monkey_patch("forgetful", "liger")


def test_without_a_generated_package_there_are_no_families() -> None:
    assert list(MonkeyPatcher(index="nothing_of_the_kind.rmpad")) == []


def test_an_index_that_fails_to_import_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_index.py").write_text("import nowhere_at_all")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        list(MonkeyPatcher(index="broken_index"))


# -- the package


def test_importing_the_package_and_the_registry_costs_nothing() -> None:
    code = """
        import sys, runtime.training
        assert not {"torch", "transformers", "liger_kernel"} & set(sys.modules), "package"
        from runtime.training.monkey_patch import MONKEY_PATCHER
        list(MONKEY_PATCHER)
        from runtime.training import *
        loaded = [it for it in sys.modules if it.startswith(("liger_kernel", "generated.rmpad."))]
        assert not loaded, loaded
        assert set(runtime.training.__all__) <= set(dir(runtime.training))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=Path(__file__).parents[2])


def test_unknown_names_of_the_package_are_errors() -> None:
    import runtime.training

    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runtime.training.nothing


# -- the guide, as written for lmms-engine, with the package's name changed

GUIDE = """
from runtime.training.monkey_patch import MONKEY_PATCHER

@MONKEY_PATCHER.register("aero", "liger")
def apply_liger_to_aero(*, rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=True, use_rmpad=False, model=None, **kwargs):
    \"\"\"
    Implement your patch logic here.
    - If called for pre-init (no `model` passed), patch HF symbols.
    - If called for post-init (a `model` is passed), mutate the model instance.
    \"\"\"
    # Example (pseudocode):
    # if model is None:
    #     ... pre-init patching ...
    # else:
    #     ... post-init patching ...
    calls.append((rope, use_rmpad, model, kwargs))

MONKEY_PATCHER.apply_monkey_patch(
    model_type="aero",
    patch_type="liger",
    rope=True,
    use_rmpad=True,
)

MONKEY_PATCHER.apply_monkey_patch_to_instance(
    model=model,
    patch_type="liger",
    rope=True,
    use_rmpad=True,
)
"""  # noqa: E501


def test_the_guides_code_runs_as_written() -> None:
    ast.parse(GUIDE)
    model = tiny()
    model.config.model_type = "aero"
    scope: dict[str, Any] = {"model": model, "calls": []}
    try:
        exec(GUIDE, scope)
        assert scope["calls"] == [(True, True, None, {}), (True, True, model, {})]
        assert MONKEY_PATCHER["aero"]["liger"] is scope["apply_liger_to_aero"]
    finally:
        del MONKEY_PATCHER["aero"]


def test_what_is_logged_tells_the_keywords(patcher: MonkeyPatcher, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        patcher.apply_monkey_patch_to_instance(tiny(), "liger", rope=False)
    assert "patch 'liger' of 'llama': small_variants.apply_liger(rope=False)" in caplog.text
    assert NOT_APPLIED["experts"] in caplog.text and len(VARIANTS) == 5
