"""Registered packages: models find their variants by the text that they are of, and what cannot be is said."""

import copy
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_folders as own
import pytest
import torch
from own_folders import MODELING, edited, regraft
from transformers import AutoModelForCausalLM, dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import runtime
from runtime import RegistrationError
from runtime.qeff import KVCacheTransform, QEFFAutoModelForCausalLM
from runtime.qeff.transforms import UnsupportedFamilyError
from runtime.training import MONKEY_PATCHER, PatchError, patch_for_training
from runtime.training.features import active

SMALL = {
    "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "sliding_window": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing registered before and after, and upstream's copies of remote code in a folder of their own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [n for n in sys.modules if n.startswith(("transformers_modules", "acme", "variants_"))]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for package in runtime.registered():
        runtime.unregister(package.name)
    for name in [n for n in sys.modules if n.startswith(("transformers_modules", "acme", "variants_"))]:
        del sys.modules[name]


def _generated(folder: Path, out: Path) -> str:
    done = regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert done.code == 0, done.err
    return out.name


def _model(folder: Path) -> Any:
    """A model whose code is loaded from a checkpoint's folder."""
    head = get_class_from_dynamic_module("modeling_tarn.TarnForCausalLM", str(folder))
    return head._from_config(head.config_class(**SMALL), attn_implementation="eager")


def _same_loss(model: Any) -> None:
    """Patched and not, the loss of a padded batch is one number; afterwards the model is patched."""
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]])
    mask = (ids != 0).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100), "use_cache": False}
    expected = model(**batch).loss
    patch_for_training(model, use_rmpad=True)
    assert active(model, "rmpad")
    torch.testing.assert_close(model(**batch).loss, expected)


def test_each_checkpoints_code_has_variants_of_its_own(tmp_path: Path) -> None:
    first, second = own.remote_code(tmp_path / "tarn"), own.remote_code(tmp_path / "tarn-2")
    runtime.register(_generated(first, tmp_path / "variants_a"))
    models = [_model(first), _model(second)]
    assert type(models[0]) is not type(models[1])
    plain = [type(model) for model in models]
    for model, upstream in zip(models, plain, strict=True):
        KVCacheTransform.apply(model)
        assert isinstance(model, upstream) and type(model).__name__ == "QEffTarnForCausalLM"
        KVCacheTransform.undo(model)
        assert type(model) is upstream
        _same_loss(model)
        assert isinstance(model, upstream)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert type(other) is type(model) and active(other, "rmpad")
    with pytest.raises(PatchError, match="2 copies of its code are loaded"):
        patch_for_training("tarn", use_rmpad=True)


def test_a_package_of_ones_own(tmp_path: Path) -> None:
    folder = own.importable(tmp_path)
    _generated(folder, tmp_path / "acme" / "variants")
    runtime.register("acme.variants")
    from acme.models.tarn import TarnConfig  # type: ignore[import-not-found]

    model = AutoModelForCausalLM.from_config(TarnConfig(**SMALL), attn_implementation="eager").eval()
    ids = torch.tensor([[3, 4, 5, 6, 7]])
    expected = model.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[:, 5:]
    with QEFFAutoModelForCausalLM(model) as variant:
        assert type(model).__module__ == "acme.variants.qeff.modeling_tarn"
        found = variant.generate(ids, generation_len=4, prefill_seq_len=4, ctx_len=16, runtime="torch")
    assert torch.equal(found.generated_ids, expected)
    _same_loss(model)
    MONKEY_PATCHER.undo(model)
    reports = patch_for_training("tarn", use_rmpad=True)
    try:
        assert active(AutoModelForCausalLM.from_config(TarnConfig(**SMALL)), "rmpad")
    finally:
        reports.undo()
    checkpoint = own.remote_code(tmp_path / "hub")
    _same_loss(_model(checkpoint))


def test_code_of_another_text_has_no_variants(tmp_path: Path) -> None:
    folder = own.remote_code(tmp_path / "tarn")
    runtime.register(_generated(folder, tmp_path / "variants_b"))
    edited(("scaling=self.scaling", "scaling=self.scaling * 2"))(folder)
    model = _model(folder)
    with pytest.raises(UnsupportedFamilyError, match=r"is another text.*regraft generate --out"):
        QEFFAutoModelForCausalLM(model)
    with pytest.raises(PatchError, match="is not of the code that variants_b was generated from"):
        patch_for_training(model, use_rmpad=True)
    runtime.unregister("variants_b")
    with pytest.raises(RegistrationError, match=r"variants_b is stale: .*modeling_tarn.py has changed since"):
        runtime.register("variants_b")
    with pytest.raises(UnsupportedFamilyError, match="not among"):
        QEFFAutoModelForCausalLM(model)
    with pytest.raises(PatchError, match="no patch is registered for model type 'tarn'"):
        patch_for_training(model, use_rmpad=True)


def test_a_type_whose_code_was_not_loaded(tmp_path: Path) -> None:
    runtime.register(_generated(own.remote_code(tmp_path / "tarn"), tmp_path / "variants_c"))
    with pytest.raises(PatchError, match="none of its code was loaded yet"):
        patch_for_training("tarn", use_rmpad=True)


def test_a_refused_model_says_why(tmp_path: Path) -> None:
    folder = own.remote_code(tmp_path / "tarn")
    before = "from .configuration_tarn import TarnConfig\n"
    edited(
        (before, f"{before}from transformers.models.llama.modeling_llama import eager_attention_forward\n"),
        ("def eager_attention_forward(", "def unused("),
    )(folder)
    assert regraft("generate", "--from", folder, "--out", tmp_path / "variants_d", "--jobs", 1).code == 1
    runtime.register("variants_d")
    model = _model(folder)
    with pytest.raises(UnsupportedFamilyError, match=r"recognize/one-file.*eager_attention_forward"):
        QEFFAutoModelForCausalLM(model)
    with pytest.raises(PatchError, match=r"recognize/one-file"):
        patch_for_training(model, use_rmpad=True)


def test_what_cannot_be_registered(tmp_path: Path) -> None:
    folder = own.remote_code(tmp_path / "tarn")
    runtime.register(_generated(folder, tmp_path / "variants_e"))
    with pytest.raises(RegistrationError, match="variants_e is registered already"):
        runtime.register("variants_e")
    with pytest.raises(RegistrationError, match="'tarn' is registered by variants_e already"):
        runtime.register(_generated(folder, tmp_path / "variants_f"))
    with pytest.raises(RegistrationError, match="variants_x cannot be imported"):
        runtime.register("variants_x")
    with pytest.raises(RegistrationError, match=r"generated .* is not a package that"):
        runtime.register("generated")
    with pytest.raises(RegistrationError, match="variants_f is not registered; registered: variants_e"):
        runtime.unregister("variants_f")
    index = tmp_path / "variants_f" / "qeff" / "__init__.py"
    index.write_text(index.read_text("utf-8").replace('"tarn":', '"llama":'), "utf-8")
    del sys.modules["variants_f.qeff"]
    with pytest.raises(RegistrationError, match="'llama' is one of regraft's own"):
        runtime.register("variants_f")
    runtime.unregister("variants_e")
    elsewhere = own.importable(tmp_path / "elsewhere", "acme_elsewhere")
    with pytest.raises(
        RegistrationError, match=r"of acme_elsewhere.models.tarn.modeling_tarn, which cannot be imported"
    ):
        runtime.register(_generated(elsewhere, tmp_path / "variants_g"))


def test_only_the_text_decides(tmp_path: Path) -> None:
    """A file of the same name with another model in it is none of the package's."""
    runtime.register(_generated(own.remote_code(tmp_path / "tarn"), tmp_path / "variants_i"))
    other = own.remote_code(tmp_path / "other")
    edited(("x = x * torch.rsqrt", "x = 2 * x * torch.rsqrt"))(other)
    assert (other / MODELING).name == MODELING
    with pytest.raises(UnsupportedFamilyError, match="is not of the code"):
        KVCacheTransform.apply(_model(other))
