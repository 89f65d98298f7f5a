"""Variants of users' models under another release: what their code relies on there is compared, as for shipped ones."""

import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import own_folders as own
import pytest
import transformers
from own_folders import MODELING, edited, regraft
from transformers import AutoModelForCausalLM, dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import runtime
from codegen.emit import manifest, verified
from runtime import guard, own_variants
from runtime.guard import UpstreamChangedError
from runtime.qeff import KVCacheTransform
from runtime.training import patch_for_training
from runtime.training.features import active

INSTALLED = Path(transformers.__file__).parent
MASKS = "masking_utils.py"
LLAMA = "models/llama/modeling_llama.py"
SMALL = {
    "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 32, "sliding_window": 4,
}  # fmt: skip
OURS = ("transformers_modules", "acme", "variants")
IMPORT = "from .configuration_tarn import TarnConfig\n"
NORM = ("class TarnRMSNorm(nn.Module)", "class Unused(nn.Module)")

Package = Callable[..., Path]
Other = Callable[[], Path]


@pytest.fixture(autouse=True)
def _clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in [n for n in sys.modules if n.startswith(OURS)]:
        monkeypatch.delitem(sys.modules, name)
    _forget()
    yield
    _forget()
    for package in runtime.registered():
        runtime.unregister(package.name)
    for name in [n for n in sys.modules if n.startswith(OURS)]:
        del sys.modules[name]


def _forget() -> None:
    for cached in (guard._header, guard._rows, guard._differences, guard._release):
        cached.cache_clear()


def _start_again() -> None:
    """As in another process."""
    _forget()
    own_variants._bound.clear()
    for name in [n for n in sys.modules if n.startswith("variants.") and n.endswith(("modeling_tarn", "]"))]:
        del sys.modules[name]


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Other:
    """Installs release 5.99.0, whose text is today's until somebody changes it."""

    def install() -> Path:
        place = tmp_path / "release"
        for path in (*INSTALLED.glob("*.py"), INSTALLED / LLAMA):
            copy = place / path.relative_to(INSTALLED)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.99.0")
        monkeypatch.setattr(guard, "_package_folder", lambda distribution: place)
        return place

    return install


@pytest.fixture
def registered(tmp_path: Path) -> Package:
    """Variants of the example, changed first, as package ``variants``; returns the model's folder."""

    def make(*changes: Callable[[Path], None], importable: bool = False) -> Path:
        folder = own.importable(tmp_path) if importable else own.remote_code(tmp_path / "tarn")
        for change in changes:
            change(folder)
        done = regraft("generate", "--from", folder, "--out", tmp_path / "variants", "--jobs", 1)
        assert done.code == 0, done.err
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runtime.register("variants")
        return folder

    return make


def _complete(place: Path) -> None:
    """All of the release that `other` installs, for the compiler."""
    for one in INSTALLED.iterdir():
        if not (place / one.name).exists():
            (place / one.name).symlink_to(one)
    shutil.rmtree(place / "models")
    (place / "models").symlink_to(INSTALLED / "models")
    (place / "__init__.py").unlink()
    (place / "__init__.py").write_text('__version__ = "5.99.0"\n')


def _model(folder: Path) -> Any:
    """A model of the folder's code, loaded as its users do."""
    if (folder / "__init__.py").exists():
        config = import_module("acme.models.tarn").TarnConfig(**SMALL)
        return AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    head = get_class_from_dynamic_module("modeling_tarn.TarnForCausalLM", str(folder))
    return head._from_config(head.config_class(**SMALL), attn_implementation="eager")


def _works(folder: Path) -> None:
    model = _model(folder)
    assert KVCacheTransform.apply(model)[1]
    KVCacheTransform.undo(model)
    patch_for_training(model, use_rmpad=True)
    assert active(model, "rmpad")


def _refused(folder: Path) -> UpstreamChangedError:
    """The error, of the same differences for both runtimes; the model stays as it was."""
    model = _model(folder)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UpstreamChangedError) as inference:
        KVCacheTransform.apply(model)
    with pytest.raises(UpstreamChangedError) as training:
        patch_for_training(model, use_rmpad=True)
    assert [type(module) for module in model.modules()] == classes
    assert inference.value.differences == training.value.differences
    return inference.value


BOTH = pytest.mark.parametrize("importable", [False, True], ids=["remote code", "package"])


CAUSAL = ("return kv_idx <= q_idx", "return kv_idx < q_idx")
CHANGED = {f"{MASKS}:causal_mask_function": "changed in meaning"}


@BOTH
def test_the_same_release_is_silent(registered: Package, importable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = registered(importable=importable)
    with monkeypatch.context() as patch:
        patch.setattr(guard, "_rows", lambda path: pytest.fail("the whole manifest was read"))
        _works(folder)


@BOTH
def test_another_release_that_means_the_same_works_and_says_so_once(
    registered: Package, other: Other, importable: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = registered(importable=importable)
    version = transformers.__version__
    edited(("return kv_idx <= q_idx", "# a causal mask\n    return (kv_idx <= q_idx)"), file=MASKS)(other())
    with caplog.at_level(logging.INFO, logger="runtime.guard"), warnings.catch_warnings():
        warnings.simplefilter("error")
        _works(folder)
        _works(folder)
    assert [record.message for record in caplog.records if record.name == "runtime.guard"] == [
        f"variants.{target}.modeling_tarn: transformers 5.99.0 is installed; what the variants need of it means the "
        f"same as in {version}"
        for target in ("qeff", "rmpad")
    ]


@BOTH
def test_what_changed_is_named_with_the_command(
    registered: Package, other: Other, importable: bool, tmp_path: Path
) -> None:
    folder = registered(importable=importable)
    version = transformers.__version__
    edited(CAUSAL, file=MASKS)(other())
    error = _refused(folder)
    assert error.differences == CHANGED and (error.generated_from, error.installed) == (version, "5.99.0")
    for part in (
        f"variants.qeff.modeling_tarn was generated for transformers {version}",
        f"5.99.0 is installed, in which what {MODELING} relies on differs",
        f"{MASKS}:causal_mask_function (changed in meaning)",
        f"`regraft generate --out {tmp_path / 'variants'}` with 5.99.0 installed",
        f"or install transformers=={version}",
    ):
        assert part in str(error), str(error)


def test_the_command_helps(registered: Package, other: Other, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, version = registered(), transformers.__version__
    changed = other()
    edited(CAUSAL, file=MASKS)(changed)
    _refused(folder)
    _complete(changed)
    done = regraft("generate", "--out", tmp_path / "variants", "--source", changed, "--jobs", 1)
    assert done.code == 0, done.err
    _start_again()
    _works(folder)
    monkeypatch.setattr(guard, "_package_folder", lambda distribution: INSTALLED)
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
    _start_again()
    assert _refused(folder).differences == CHANGED


@pytest.mark.parametrize("changed", [False, True])
def test_what_was_verified_stays_so_where_it_means_the_same(
    registered: Package, other: Other, tmp_path: Path, changed: bool
) -> None:
    registered()
    out, place = tmp_path / "variants", other()
    _complete(place)
    edited(("return kv_idx <= q_idx", f"return kv_idx <{'' if changed else '='} q_idx"), file=MASKS)(place)
    written = manifest.read(out / manifest.NAME)
    assert written is not None
    outputs = {target: entry.output for (target, _), entry in written.entries.items()}
    records = {target: {"tarn": verified.Record(output, True, 3)} for target, output in outputs.items()}
    (out / verified.NAME).write_text(verified.render(records))
    done = regraft("generate", "--out", out, "--source", place, "--jobs", 1)
    assert done.code == 0 and "transformers 5.99.0" in done.out, done.err
    kept = {target: {} if changed else mine for target, mine in records.items()}
    assert verified.read(out / verified.NAME) == kept
    assert (out / "COVERAGE.md").read_text().count("| tarn | verified | 3 |") == (0 if changed else 2)


def test_a_release_that_is_not_there_any_more(registered: Package, tmp_path: Path) -> None:
    """Nothing but the manifest tells of the release that the package was generated for."""
    folder = registered()
    path = tmp_path / "variants" / "MANIFEST.toml"
    text = path.read_text("utf-8").replace(f'version = "{transformers.__version__}"', 'version = "4.0.0"')
    path.write_text(text, "utf-8")
    _works(folder)
    name = f'"{MASKS}:causal_mask_function" = "'
    assert name in text
    path.write_text(text.replace(name, f"{name}0"), "utf-8")
    _start_again()
    error = _refused(folder)
    assert error.differences == CHANGED
    assert error.generated_from == "4.0.0" and "install transformers==4.0.0" in str(error)


def test_a_type_is_compared_too(registered: Package, other: Other) -> None:
    registered(importable=True)
    edited(CAUSAL, file=MASKS)(other())
    with pytest.raises(UpstreamChangedError, match="causal_mask_function"):
        patch_for_training("tarn", use_rmpad=True)


def test_a_training_module_imported_by_its_own_name_is_compared(registered: Package, other: Other) -> None:
    registered(importable=True)
    edited(CAUSAL, file=MASKS)(other())
    with pytest.raises(UpstreamChangedError, match="causal_mask_function"):
        import_module("variants.rmpad.modeling_tarn")


@BOTH
def test_an_import_that_fails(registered: Package, other: Other, importable: bool, tmp_path: Path) -> None:
    folder = registered(importable=importable)
    for target in ("qeff", "rmpad"):
        edited(("import torch\n", "import torch\nfrom transformers import Gone\n"), file=f"{target}/{MODELING}")(
            tmp_path / "variants"
        )
    with pytest.raises(ImportError, match="Gone"):
        KVCacheTransform.apply(_model(folder))
    other()
    assert "Gone" in _refused(folder).differences["an import"]


# ------------------------------------------------------------------------------------------------------ what counts


def _of_llama(folder: Path) -> None:
    """The norm is llama's."""
    edited(
        (IMPORT, f"{IMPORT}from transformers.models.llama.modeling_llama import LlamaRMSNorm\n"),
        NORM,
        ("class TarnRotary", "class TarnRMSNorm(LlamaRMSNorm):\n    pass\n\n\nclass TarnRotary"),
    )(folder)


LLAMAS_NORM = ("hidden_states.pow(2)", "hidden_states.pow(4)")


@BOTH
def test_a_class_of_another_family_counts(registered: Package, other: Other, importable: bool) -> None:
    folder = registered(_of_llama, importable=importable)
    edited(LLAMAS_NORM, file=LLAMA)(other())
    assert _refused(folder).differences == {f"{LLAMA}:LlamaRMSNorm.forward": "changed in meaning"}


def _of_a_file_beside(statement: str) -> Callable[[Path], None]:
    """The norm is of another file of the user's, which takes code of upstream's."""

    def change(folder: Path) -> None:
        edited((IMPORT, f"{IMPORT}{statement}\n"), NORM)(folder)
        place = folder / "norms.py"
        if "layers" in statement:
            place = folder.parents[1] / "layers" / "norms.py"
            place.parent.mkdir()
            (place.parent / "__init__.py").write_text("from .norms import TarnRMSNorm\n")
        place.write_text(
            "from transformers.models.llama.modeling_llama import LlamaRMSNorm, rotate_half\n\n\n"
            "class TarnRMSNorm(LlamaRMSNorm):\n"
            "    turn = staticmethod(rotate_half)\n"
        )

    return change


@pytest.mark.parametrize(
    ("statement", "importable"),
    [
        ("from .norms import TarnRMSNorm", False),
        ("from .norms import TarnRMSNorm", True),
        ("from acme.models.tarn.norms import TarnRMSNorm", True),
        ("from ...layers import TarnRMSNorm", True),
        ("from acme.layers import TarnRMSNorm", True),
    ],
)
def test_what_a_file_beside_relies_on_counts(
    registered: Package, other: Other, statement: str, importable: bool
) -> None:
    folder = registered(_of_a_file_beside(statement), importable=importable)
    changed = other()
    _works(folder)
    _start_again()
    edited(LLAMAS_NORM, ("torch.cat((-x2, x1), dim=-1)", "torch.cat((x2, x1), dim=-1)"), file=LLAMA)(changed)
    assert _refused(folder).differences == {
        f"{LLAMA}:LlamaRMSNorm.forward": "changed in meaning",
        f"{LLAMA}:rotate_half": "changed in meaning",
    }


def test_a_name_that_upstream_hands_on_counts(registered: Package, other: Other) -> None:
    """``from transformers import ...`` says no file."""
    before = "from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update\n"
    after = before.replace("ROPE_INIT_FUNCTIONS, ", "") + "from transformers import ROPE_INIT_FUNCTIONS\n"
    folder = registered(edited((before, after)))
    changed = other()
    _works(folder)
    _start_again()
    edited(("inv_freq /= factor", "inv_freq *= factor"), file="modeling_rope_utils.py")(changed)
    assert _refused(folder).differences == {
        f"modeling_rope_utils.py:_compute_{kind}_rope_parameters": "changed in meaning"
        for kind in ("linear_scaling", "proportional")
    }


def test_a_file_beside_counts_itself(registered: Package, other: Other, tmp_path: Path) -> None:
    """Each checkpoint's is compared: of two with the same modeling file, one has another norm."""
    first = registered(_of_a_file_beside("from .norms import TarnRMSNorm"))
    second = tmp_path / "second"
    shutil.copytree(first, second)
    edited(("staticmethod(rotate_half)", "None"), file="norms.py")(second)
    other()
    _works(first)
    assert _refused(second).differences == {
        "../transformers_modules/tarn/norms.py:TarnRMSNorm": "changed in meaning",
    }
    done = regraft("check", "--out", tmp_path / "variants", "--jobs", 1)
    assert done.code == 0, done.err
    shutil.copy(second / "norms.py", first / "norms.py")
    done = regraft("check", "--out", tmp_path / "variants", "--jobs", 1)
    assert done.code == 1 and "stale: MANIFEST.toml" in done.err and MODELING not in done.err


def test_a_name_of_upstreams_own_file_beside_is_not_upstreams(registered: Package, other: Other) -> None:
    """``from .masking_utils import ...`` is the user's file of that name."""

    def change(folder: Path) -> None:
        edited(
            (IMPORT, f"{IMPORT}from .masking_utils import repeated\n"), ("* x.to(dtype)", "* repeated(x.to(dtype))")
        )(folder)
        (folder / "masking_utils.py").write_text("def repeated(x):\n    return x\n")

    folder = registered(change)
    _works(folder)
    other()
    _start_again()
    _works(folder)
