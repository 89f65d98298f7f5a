"""The installed release against the manifest: silent, the same in meaning, or an error that names what differs."""

import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from codegen.emit import manifest
from runtime import guard
from runtime.guard import ManifestError, UpstreamChangedError, check_upstream, explain_unknown, same_release
from runtime.qeff import KVCacheTransform, UnsupportedFamilyError
from runtime.training import MONKEY_PATCHER, UnknownPatchError
from runtime.verify.switches import why_not_here

LLAMA, PHI = "generated.qeff.modeling_llama", "generated.qeff.modeling_phi"
INSTALLED = Path(transformers.__file__).parent
GENERATED = Path(guard.__file__).resolve().parents[1] / "generated"
PATHS = [f"models/{name}/modeling_{name}.py" for name in ("llama", "phi")]
OTHERS = [
    "masking_utils.py", "modeling_rope_utils.py", "activations.py", "pytorch_utils.py",
    "utils/generic.py", "utils/output_capturing.py", "modeling_flash_attention_utils.py", "modeling_utils.py",
    "processing_utils.py",
]  # fmt: skip
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "vocab_size": 8}

Edit = Callable[[str, str, str], None]


def _forget() -> None:
    for cached in (guard._header, guard._rows, guard._differences, guard._release):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    _forget()
    yield
    _forget()


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The text of a release 5.99.0, the installed one's until somebody changes it."""
    for path in [*PATHS, *OTHERS]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(INSTALLED / path, tmp_path / path)
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.99.0")
    monkeypatch.setattr(guard, "_package_folder", lambda distribution: tmp_path)
    return tmp_path


@pytest.fixture
def edit(upstream: Path) -> Edit:
    def change(path: str, before: str, after: str) -> None:
        text = (upstream / path).read_text("utf-8")
        assert before in text
        (upstream / path).write_text(text.replace(before, after), "utf-8")

    return change


def _llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SMALL))


def test_the_same_release_reads_the_head_of_the_manifest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "_rows", lambda path: pytest.fail("the whole manifest was read"))
    for version in (transformers.__version__, f"{transformers.__version__}+cpu"):
        monkeypatch.setattr(sys.modules["transformers"], "__version__", version)
        check_upstream(LLAMA)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("5.9", "5.9.0", True), ("5.5.4+cpu", "5.5.4", True), ("5.5.4.dev0", "5.5.4", False), ("odd", "odd", True)],
)
def test_what_one_release_is(one: str, other: str, same: bool) -> None:
    assert same_release(one, other) is same


def test_another_release_with_the_same_text_works_and_says_so_once(
    upstream: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="runtime.guard"):
        for _ in range(3):
            model, swapped = KVCacheTransform.apply(_llama())
            assert swapped and type(model).__name__ == "QEffLlamaForCausalLM"
    assert [record.message for record in caplog.records if record.name == "runtime.guard"] == [
        f"{LLAMA}: transformers 5.99.0 is installed; what the variants need of it means the same as in "
        f"{manifest.read(GENERATED / manifest.NAME).version}"  # type: ignore[union-attr]
    ]


def test_another_spelling_works(edit: Edit) -> None:
    edit(PATHS[0], "attn_output", "attended")
    check_upstream(LLAMA)


DIFFERENT = [
    ("a derived method", PATHS[0], "scaling=self.scaling,", "", {"LlamaAttention.forward": "changed in meaning"}),
    (
        "a constructor",
        PATHS[0],
        "self.scaling = self.head_dim**-0.5",
        "self.scaling = 1.0",
        {"LlamaAttention.__init__": "changed in meaning"},
    ),
    (
        "a method that no variant overrides",
        PATHS[0],
        "down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))",
        "down_proj = self.down_proj(self.gate_proj(x) * self.up_proj(x))",
        {"LlamaMLP.forward": "changed in meaning"},
    ),
    (
        "a base class",
        PATHS[0],
        "class LlamaMLP(nn.Module):",
        "class LlamaMLP(LlamaRMSNorm):",
        {"LlamaMLP": "changed in meaning"},
    ),
    (
        "a helper that is gone",
        PATHS[0],
        "def rotate_half(",
        "def turn_half(",
        {"rotate_half": "gone"},
    ),
    (
        "a method that now comes between",
        PATHS[0],
        "class LlamaForCausalLM(LlamaPreTrainedModel, GenerationMixin):",
        "def helper(): pass\nclass LlamaForCausalLM(LlamaPreTrainedModel, GenerationMixin):\n    extra = helper\n",
        {"LlamaForCausalLM": "changed in meaning", "helper": "new"},
    ),
    (
        "a function of another file",
        "masking_utils.py",
        "def create_causal_mask(",
        "def make_causal_mask(",
        {"masking_utils.py:create_causal_mask": "gone"},
    ),
    (
        "what a function of another file relies on",
        "masking_utils.py",
        "return kv_idx <= q_idx",
        "return kv_idx < q_idx",
        {"masking_utils.py:causal_mask_function": "changed in meaning"},
    ),
    (
        "a rotary initialiser",
        "modeling_rope_utils.py",
        "return 0.1 * mscale * math.log(scale) + 1.0",
        "return 0.2 * mscale * math.log(scale) + 1.0",
        {"modeling_rope_utils.py:_compute_yarn_parameters": "changed in meaning"},
    ),
    (
        "an activation",
        "activations.py",
        "return self.act(input)",
        "return self.act(-input)",
        {"activations.py:GELUActivation.forward": "changed in meaning"},
    ),
    (
        "a decorator",
        "modeling_rope_utils.py",
        "def dynamic_rope_update(rope_forward):",
        "def dynamic_rope_update(rope_forward, early=True):",
        {"modeling_rope_utils.py:dynamic_rope_update": "changed in meaning"},
    ),
]


@pytest.mark.parametrize("target", ["qeff", "rmpad"])
@pytest.mark.parametrize(
    ("path", "before", "after", "differs"), [case[1:] for case in DIFFERENT], ids=[case[0] for case in DIFFERENT]
)
def test_what_differs_is_named(
    edit: Edit, path: str, before: str, after: str, differs: dict[str, str], target: str
) -> None:
    edit(path, before, after)
    module = f"generated.{target}.modeling_llama"
    with pytest.raises(UpstreamChangedError) as caught:
        check_upstream(module)
    assert differs.items() <= caught.value.differences.items()
    message = str(caught.value)
    for part in (module, "5.99.0", PATHS[0], "`regraft bump 5.99.0`", *differs, *differs.values()):
        assert part in message
    written = manifest.read(GENERATED / manifest.NAME)
    assert written is not None and f"install transformers=={written.version}" in message


def test_what_no_variant_runs_of_an_imported_file_is_no_difference(edit: Edit) -> None:
    edit("modeling_rope_utils.py", "class RopeParameters(TypedDict):", "class RopeParameters(TypedDict, total=False):")
    edit("masking_utils.py", "from .cache_utils import Cache", "from .cache_utils import Cache as Cache")
    check_upstream(LLAMA)


def test_a_family_that_did_not_change_works_beside_one_that_did(edit: Edit) -> None:
    edit(PATHS[0], "scaling=self.scaling,", "")
    assert KVCacheTransform.apply(PhiForCausalLM(PhiConfig(**SMALL)))[1]
    with pytest.raises(UpstreamChangedError):
        KVCacheTransform.apply(_llama())


def test_a_model_is_left_as_it_was(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(PATHS[0], "scaling=self.scaling,", "")
    monkeypatch.setattr(MONKEY_PATCHER, "_generated", {})
    model = _llama()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(UpstreamChangedError, match=r"LlamaAttention\.forward"):
        KVCacheTransform.apply(model)
    with pytest.raises(UpstreamChangedError, match=r"LlamaAttention\.forward"):
        MONKEY_PATCHER.apply_monkey_patch_to_instance(model, "rmpad")
    with pytest.raises(UpstreamChangedError, match=r"LlamaAttention\.forward"):
        MONKEY_PATCHER.apply_monkey_patch("llama", "liger")
    assert [type(module) for module in model.modules()] == classes


def test_a_training_module_imported_by_its_own_name_is_checked(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(PATHS[1], "class PhiMLP", "class PhiFeed")
    monkeypatch.delitem(sys.modules, "generated.rmpad.modeling_phi", raising=False)
    with pytest.raises(UpstreamChangedError, match="PhiMLP"):
        __import__("generated.rmpad.modeling_phi")
    sys.modules.pop("generated.rmpad.modeling_phi", None)


@pytest.mark.parametrize("content", [None, b"def (", b"\xff"], ids=["gone", "no syntax", "no text"])
def test_a_file_that_is_gone_or_damaged(upstream: Path, content: bytes | None) -> None:
    (upstream / PATHS[0]).unlink()
    if content is not None:
        (upstream / PATHS[0]).write_bytes(content)
    with pytest.raises(UpstreamChangedError, match="no such file, or one that does not parse"):
        check_upstream(LLAMA)


def test_a_head_that_is_gone(edit: Edit) -> None:
    edit(PATHS[0], "class LlamaForCausalLM(", "class LlamaLM(")
    with pytest.raises(UpstreamChangedError) as caught:
        check_upstream(LLAMA)
    assert caught.value.differences["LlamaForCausalLM.forward"] == "gone"


def test_an_import_that_fails_under_another_release(upstream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.importlib, "import_module", _failing(guard.importlib.import_module))
    with pytest.raises(UpstreamChangedError, match="no name Cache"):
        guard.import_variants(LLAMA)
    monkeypatch.setattr(sys.modules["transformers"], "__version__", manifest.read(GENERATED / manifest.NAME).version)  # type: ignore[union-attr]
    with pytest.raises(ImportError, match="no name Cache"):
        guard.import_variants(LLAMA)


def _failing(real: Callable[[str], object]) -> Callable[[str], object]:
    def load(name: str) -> object:
        if name == LLAMA:
            raise ImportError("no name Cache")
        return real(name)

    return load


def test_a_type_that_is_new(upstream: Path) -> None:
    model = _llama()
    model.config.model_type = "llama_of_tomorrow"
    model.__class__ = type("LlamaOfTomorrow", (LlamaForCausalLM,), {"__module__": "transformers.models.tomorrow"})
    with pytest.raises(UnsupportedFamilyError, match=r"5\.99\.0 is installed.*regraft bump 5\.99\.0"):
        KVCacheTransform.apply(model)
    with pytest.raises(UnknownPatchError, match=r"5\.99\.0 is installed.*regraft bump 5\.99\.0"):
        MONKEY_PATCHER.apply_monkey_patch("llama_of_tomorrow", "rmpad")


def test_nothing_is_added_to_messages_of_the_same_release() -> None:
    assert explain_unknown("generated.qeff") == ""
    assert explain_unknown("no_tree.rmpad") == ""


def test_a_development_version_is_told_where_its_source_is(edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(PATHS[0], "scaling=self.scaling,", "")
    monkeypatch.setattr(sys.modules["transformers"], "__version__", "5.99.0.dev0")
    with pytest.raises(UpstreamChangedError, match=r"regraft bump 5\.99\.0\.dev0 --source /"):
        check_upstream(LLAMA)


def test_verification_says_the_same(edit: Edit) -> None:
    edit(PATHS[0], "scaling=self.scaling,", "")
    for target in ("qeff", "rmpad"):
        assert "LlamaAttention.forward (changed in meaning)" in why_not_here(target, "llama")
        assert why_not_here(target, "phi") == ""


# ---------------------------------------------------------------------------------------------------------- manifests


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tree of its own, ``small_tree``, with the manifest of the committed one."""
    folder = tmp_path / "trees" / "small_tree"
    (folder / "qeff").mkdir(parents=True)
    for package in (folder, folder / "qeff"):
        (package / "__init__.py").write_text("")
    shutil.copy(GENERATED / manifest.NAME, folder / manifest.NAME)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [it for it in sys.modules if it.startswith("small_tree")]:
        del sys.modules[name]


MODULE = "small_tree.qeff.modeling_llama"


def test_a_missing_manifest(tree: Path) -> None:
    (tree / manifest.NAME).unlink()
    with pytest.raises(ManifestError, match=rf"MANIFEST.toml is missing.*`regraft generate --out {tree}`"):
        check_upstream(MODULE)


@pytest.mark.parametrize("content", [b"", b"<<<<<<< HEAD\n", b"\xff\xfe", b"[upstream]\nversion = 1\n"])
def test_a_damaged_manifest(tree: Path, content: bytes) -> None:
    (tree / manifest.NAME).write_bytes(content)
    with pytest.raises(ManifestError, match=r"MANIFEST.toml is damaged.*regraft generate"):
        check_upstream(MODULE)


def test_a_manifest_damaged_further_down(tree: Path, upstream: Path) -> None:
    text = (tree / manifest.NAME).read_text("utf-8")
    (tree / manifest.NAME).write_text(text + "[[targets.qeff\n", "utf-8")
    with pytest.raises(ManifestError, match=r"MANIFEST.toml is damaged.*regraft generate"):
        check_upstream(MODULE)


def test_a_manifest_of_an_older_regraft(tree: Path, upstream: Path) -> None:
    text = (tree / manifest.NAME).read_text("utf-8")
    (tree / manifest.NAME).write_text(text.replace('fingerprints = "', 'fingerprints = "0.'), "utf-8")
    with pytest.raises(ManifestError, match=r"another version of regraft.*regraft generate"):
        check_upstream(MODULE)


def test_a_manifest_without_what_imports_lead_to(tree: Path, upstream: Path) -> None:
    text = (tree / manifest.NAME).read_text("utf-8")
    (tree / manifest.NAME).write_text(text[: text.index("[parts.")], "utf-8")
    with pytest.raises(ManifestError, match=r"another version of regraft.*regraft generate"):
        check_upstream(MODULE)


def test_the_remedy_names_the_tree(tree: Path, edit: Edit) -> None:
    edit(PATHS[0], "scaling=self.scaling,", "")
    with pytest.raises(UpstreamChangedError, match=rf"`regraft bump 5\.99\.0 --out {tree}`"):
        check_upstream(MODULE)


def test_a_file_of_a_release_that_was_left_behind_is_compared(tree: Path) -> None:
    """`generate FAMILY --source ...` leaves other files of the release before; they say so."""
    text = (tree / manifest.NAME).read_text("utf-8")
    version = transformers.__version__
    row = f'upstream = "{PATHS[0]}"\n'
    text = text.replace(f'version = "{version}"\n', f'version = "{version}"\nmixed = true\n', 1)
    text = text.replace(row, f'{row}version = "5.0.0"\n')
    (tree / manifest.NAME).write_text(text, "utf-8")
    check_upstream(MODULE)  # left behind in name alone
    (tree / manifest.NAME).write_text(text.replace('"LlamaAttention.forward" = "', '"LlamaAttention.forward" = "0'))
    _forget()
    with pytest.raises(UpstreamChangedError, match=r"from transformers 5\.0\.0") as caught:
        check_upstream(MODULE)
    assert caught.value.differences == {"LlamaAttention.forward": "changed in meaning"}
