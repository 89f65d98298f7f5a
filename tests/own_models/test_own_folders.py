"""Folders of a user's: which causal LM is meant, what is written where, and what is refused; all from text."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import own_folders as own
import pytest
from own_folders import CONFIG, CONFIGURATION, MODELING, ROOT, edited, regraft, without_auto_map

from codegen.diagnostics import InputError
from codegen.emit import manifest
from codegen.own.heads import find_heads
from codegen.own.import_path import Loader, import_path
from runtime.fingerprint import text_digest

SECOND_HEAD = "\n\nclass OtherForCausalLM(TarnPreTrainedModel, GenerationMixin):\n    pass\n"


def _append(text: str, file: str = MODELING) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with open(folder / file, "a", encoding="utf-8") as opened:
            opened.write(text)

    return change


def _both(*changes: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def _unlink(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def _renamed(file: str, to: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).rename(folder / to)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return own.remote_code(tmp_path / "tarn")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "tarn_variants"


# ---------------------------------------------------------------------------------------------------- what is written


def test_the_committed_example_is_what_the_compiler_writes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codegen", "check", "--out", "examples/own_model/tarn_variants", "--cold"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]


def test_a_folder_becomes_a_package(folder: Path, out: Path) -> None:
    done = regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert done.code == 0, done.err
    assert "tarn: TarnForCausalLM in modeling_tarn.py" in done.out
    written = own.tree(out)
    assert set(written) == {
        "__init__.py", "MANIFEST.toml", "COVERAGE.md",
        *(f"{target}/{name}" for target in ("qeff", "rmpad") for name in ("__init__.py", MODELING)),
    }  # fmt: skip
    text = written[f"qeff/{MODELING}"].decode()
    assert "from transformers_modules.tarn.modeling_tarn import" in text
    assert "class QEffTarnAttention(TarnAttention):" in text
    committed = own.tree(own.EXAMPLE / "tarn_variants")
    assert {k: v for k, v in written.items() if k.endswith(".py")} == {
        k: v for k, v in committed.items() if k.endswith(".py") and "__pycache__" not in k
    }
    assert regraft("check", "--out", out, "--jobs", 1).code == 0
    again = regraft("generate", "--out", out, "--jobs", 1)
    assert again.code == 0 and "7 unchanged" in again.out, "the manifest remembers the folder"
    assert own.tree(out) == written


def test_no_place_on_this_machine_is_written(folder: Path, out: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert not [path for path, text in own.tree(out).items() if str(folder.parent).encode() in text]
    where = os.getcwd()
    first = own.tree(out)
    try:
        os.chdir(folder)
        assert regraft("generate", "--from", ".", "--out", "../other_variants", "--jobs", 1).code == 0
    finally:
        os.chdir(where)
    assert own.tree(out.parent / "other_variants") == first


def test_the_notice_is_the_users(folder: Path, out: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    text = (out / "rmpad" / MODELING).read_text("utf-8")
    notice = (folder / MODELING).read_text("utf-8").split('"""')[0].strip()
    assert notice in text and "Apache" not in text and "HuggingFace" not in text
    edited((notice, ""))(folder)
    assert regraft("generate", "--out", out, "--jobs", 1).code == 0
    text = (out / "rmpad" / MODELING).read_text("utf-8")
    assert "# The file it was derived from begins with no notice." in text and "Apache" not in text


def test_states(folder: Path, out: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    edited(("x = x * torch.rsqrt", "x = x / 1.0 * torch.rsqrt"), ("scaling=self.scaling", "scaling=self.scaling * 2"))(
        folder
    )
    states = json.loads(regraft("check", "--out", out, "--jobs", 1, "--json").out)
    assert states[f"qeff/{MODELING}"] == states[f"rmpad/{MODELING}"] == states["MANIFEST.toml"] == "stale"
    assert regraft("generate", "--out", out, "--jobs", 1).code == 0

    hand = out / "qeff" / MODELING
    hand.write_text(hand.read_text("utf-8").replace("dropout=0.0", "dropout=0.5"), "utf-8")
    before = own.tree(out)
    done = regraft("generate", "--out", out, "--jobs", 1)
    assert done.code == 2 and f"edited by hand: qeff/{MODELING}" in done.err and own.tree(out) == before
    assert json.loads(regraft("check", "--out", out, "--jobs", 1, "--json").out)[f"qeff/{MODELING}"] == "hand-edited"
    assert regraft("generate", "--out", out, "--jobs", 1, "--discard-edits").code == 0
    assert regraft("check", "--out", out, "--jobs", 1).code == 0


def test_review(folder: Path, out: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    facts = json.loads(regraft("inspect", "tarn", "--from", folder, "--json").out)
    assert facts["head"] == "TarnForCausalLM" and [norm[0] for norm in facts["norms"]] == ["TarnRMSNorm"]
    assert "-        attention_interface: Callable" in regraft("diff", "tarn", "--from", folder).out
    text = (out / "qeff" / MODELING).read_text("utf-8").splitlines()
    line = next(i for i, line in enumerate(text, 1) if "eager_attention_forward(" in line and "=" in line)
    explained = json.loads(regraft("explain", f"{out}/qeff/{MODELING}:{line}", "--out", out, "--json").out)
    assert "qeff/attention-dispatch" in {one["rule"] for one in explained}
    assert all(one["upstream"].startswith(f"{MODELING}:") for one in explained)
    rows = json.loads(regraft("coverage", "--out", out, "--json").out)
    assert [row["state"] for listed in rows.values() for row in listed] == ["generated", "generated"]


def test_line_ends_do_not_make_another_text() -> None:
    written = manifest.read(own.EXAMPLE / "tarn_variants" / manifest.NAME)
    assert written is not None and written.own is not None
    compilers = written.own.sources[MODELING]
    text = (own.EXAMPLE / "tarn" / MODELING).read_text("utf-8")
    assert compilers == text_digest(text.encode()) == text_digest(text.replace("\n", "\r\n").encode())


# --------------------------------------------------------------------------------------------------------- which head


@pytest.mark.parametrize(
    ("change", "evidence"),
    [
        (lambda folder: None, "auto_map"),
        (without_auto_map, "the one class"),
        (
            _both(without_auto_map, _append('\nTarnForCausalLM.register_for_auto_class("AutoModelForCausalLM")\n')),
            "reg",
        ),
        (_both(_unlink(CONFIG), _append("\nAutoModelForCausalLM.register(TarnConfig, TarnForCausalLM)\n")), "regist"),
        (_both(_append(SECOND_HEAD)), "auto_map"),
        (lambda folder: (folder / "convert.py").write_text("print 'of another Python'\n"), "auto_map"),
        (_both(without_auto_map, _append(SECOND_HEAD.replace("OtherForCausalLM", "OtherForScoring"))), "the one class"),
    ],
)
def test_the_head_is_found(folder: Path, change: Callable[[Path], object], evidence: str) -> None:
    change(folder)
    found = find_heads(folder)
    assert [(f.model_type, f.head, f.path) for f in found.families] == [("tarn", "TarnForCausalLM", MODELING)]
    assert evidence in found.evidence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_unlink(MODELING), "holds no modeling_<name>.py"),
        (_both(without_auto_map, _append(SECOND_HEAD)), "more than one causal LM: OtherForCausalLM, TarnForCausalLM"),
        (_both(without_auto_map, edited((", GenerationMixin", ""))), "no class of"),
        (edited(("def forward(self, x: torch", "def forward(self x: torch")), "a syntax error"),
        (_unlink(CONFIGURATION), "from .configuration_tarn: "),
        (edited(("class TarnConfig(", "class Config("), file=CONFIGURATION), "defines no such class"),
        (edited(('model_type = "tarn"', ""), file=CONFIGURATION), "has no model_type"),
        (edited(("config_class = TarnConfig", ""), ("config: TarnConfig", "config")), "names no configuration class"),
        (edited(('"model_type": "tarn"', '"model_type": "barn"'), file=CONFIG), "says model_type 'barn'"),
        (edited(('"tarn"', '"llama"'), file=CONFIGURATION), "says model_type 'tarn', the configuration class 'llama'"),
        (
            _both(without_auto_map, *(edited(('"tarn"', '"llama"'), file=f) for f in (CONFIGURATION, CONFIG))),
            "'llama' is one of upstream's own",
        ),
        (edited(("modeling_tarn.TarnForCausalLM", "acme/tarn--modeling_tarn.TarnForCausalLM"), file=CONFIG), "another"),
        (
            _both(
                _renamed(MODELING, "modeling_tarn-2.py"),
                edited(("modeling_tarn.", "modeling_tarn-2."), file=CONFIG),
            ),
            "'modeling_tarn-2' is no name of a Python module",
        ),
        (edited(("model_type =", "model_type"), file=CONFIGURATION), "a syntax"),
        (edited(("modeling_tarn.TarnForCausalLM", "modeling_tarn.Tarn"), file=CONFIG), "has no class Tarn"),
        (edited(("modeling_tarn.TarnForCausalLM", "modeling_barn.Tarn"), file=CONFIG), "no modeling_<name>.py of that"),
        (edited(("modeling_tarn.TarnForCausalLM", "TarnForCausalLM"), file=CONFIG), "not <module>.<Class>"),
        (
            edited(
                (
                    "{",
                    "[",
                ),
                file=CONFIG,
            ),
            "is no JSON",
        ),
        (lambda folder: (folder / MODELING).write_bytes(b"\xff"), "is not UTF-8"),
        (lambda folder: (folder / MODELING).write_bytes(b"x = 1\0"), "a syntax error"),
    ],
)
def test_unusable_folders(folder: Path, out: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    done = regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert done.code == 2 and message in done.err, done.err
    assert not out.exists()


# ---------------------------------------------------------------------------------------------------------- import path


def test_a_package_is_imported_by_its_name(tmp_path: Path) -> None:
    folder = own.importable(tmp_path)
    out = tmp_path / "acme" / "variants"
    done = regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert done.code == 0, done.err
    assert "its classes are of acme.models.tarn" in done.out
    assert "from acme.models.tarn.modeling_tarn import" in (out / "qeff" / MODELING).read_text("utf-8")
    assert import_path(folder, None, is_remote_code=False).loader is Loader.IMPORT


def test_names_of_folders(tmp_path: Path) -> None:
    hub = own.remote_code(tmp_path / "7b-v1.5")
    assert import_path(hub, None, is_remote_code=True).package == "transformers_modules._7b_hyphen_v1_dot_5"
    (hub / "__init__.py").write_text("")
    assert import_path(hub, None, is_remote_code=False).loader is Loader.REMOTE_CODE, "Python cannot import it"
    plain = own.importable(tmp_path)
    assert import_path(plain, None, is_remote_code=True).loader is Loader.REMOTE_CODE
    assert import_path(plain, "models.tarn", is_remote_code=True).package == "models.tarn"
    odd = own.remote_code(tmp_path / "a model")
    for given, message in (
        (None, "rename it"),
        ("acme.tarn", "a package of that name"),
        ("1.x", "not the dotted name"),
    ):
        with pytest.raises(InputError, match=message):
            import_path(odd if given is None else plain, given, is_remote_code=False)


def test_the_name_given_is_remembered(folder: Path, out: Path) -> None:
    assert regraft("generate", "--from", folder, "--module", "tarn", "--out", out, "--jobs", 1).code == 0
    assert regraft("check", "--from", folder, "--out", out, "--jobs", 1).code == 0
    assert regraft("generate", "--out", out, "--jobs", 1).code == 0
    assert "from tarn.modeling_tarn import" in (out / "rmpad" / MODELING).read_text("utf-8")


# --------------------------------------------------------------------------------------------------------- where to


def test_unusable_places(folder: Path, tmp_path: Path) -> None:
    generate = ("generate", "--from", folder, "--jobs", 1)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.py").write_text("x = 1\n")
    for arguments, message in (
        (("--out", foreign), "holds files that regraft did not write (mine.py)"),
        (("--out", folder), "did not write"),
        (("--out", tmp_path / "not-a-name"), "is no name of a Python package"),
        (("--out", tmp_path / "generated"), "'generated' is imported from elsewhere"),
        (("--out", tmp_path / "torch"), "'torch' is imported from elsewhere"),
        (("--out", tmp_path / "transformers_modules"), "'transformers_modules' is imported from elsewhere"),
        (("--module", "tarn", "--out", tmp_path / "other" / "tarn"), "'tarn' is imported from elsewhere"),
        (("--out", folder / CONFIG), "Not a directory"),
        ((), "--from needs --out"),
    ):
        done = regraft(*generate, *arguments)
        assert done.code == 2 and message in done.err, done.err
    assert own.tree(foreign) == {"mine.py": b"x = 1\n"}
    done = regraft("generate", "--module", "tarn")
    assert done.code == 2 and "--module goes with --from" in done.err


def test_a_file_of_somebody_elses_in_the_package_stays(folder: Path, out: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    (out / "notes.txt").write_text("mine")
    assert regraft("generate", "--out", out, "--jobs", 1).code == 0
    for file in (MODELING, CONFIGURATION):
        (folder / file).rename(folder / file.replace("tarn", "pond"))
    edited(("configuration_tarn", "configuration_pond"), file="modeling_pond.py")(folder)
    edited(("modeling_tarn", "modeling_pond"), ("configuration_tarn", "configuration_pond"), file=CONFIG)(folder)
    (out / "qeff" / "modeling_pond.py").write_text("mine")
    before = own.tree(out)
    done = regraft("generate", "--out", out, "--jobs", 1)
    assert done.code == 2 and "(qeff/modeling_pond.py)" in done.err and own.tree(out) == before
    (out / "qeff" / "modeling_pond.py").unlink()
    assert regraft("generate", "--out", out, "--jobs", 1).code == 0
    assert not (out / "qeff" / MODELING).exists() and (out / "notes.txt").read_text() == "mine"


def test_trees_of_upstream_and_of_ones_own_do_not_mix(folder: Path, out: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    before = own.tree(out)
    done = regraft("drift", "installed", "installed", "--out", out, "--jobs", 1)
    assert done.code == 2 and "holds variants of your own models" in done.err
    (out / "MANIFEST.toml").write_text((out / "MANIFEST.toml").read_text("utf-8").replace("[own", "[other"), "utf-8")
    done = regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert done.code == 2 and "holds variants of an upstream release" in done.err
    (out / "MANIFEST.toml").write_bytes(before["MANIFEST.toml"])
    assert own.tree(out) == before


def test_places_that_are_links(folder: Path, tmp_path: Path) -> None:
    """The folder is remembered as seen from where the package is, not from the link."""
    place = tmp_path / "far" / "away" / "tarn_variants"
    place.mkdir(parents=True)
    (tmp_path / "link").symlink_to(place)
    assert regraft("generate", "--from", f"{folder}/", "--out", tmp_path / "link", "--jobs", 1).code == 0
    for out in (tmp_path / "link", place):
        done = regraft("check", "--out", out, "--jobs", 1)
        assert done.code == 0, done.err


def test_a_package_in_the_models_folder(tmp_path: Path) -> None:
    folder = own.importable(tmp_path / "with space")
    out = folder / "variants"
    assert regraft("generate", "--from", folder, "--out", out, "--jobs", 1).code == 0
    assert regraft("check", "--out", out, "--jobs", 1).code == 0
    assert "from acme.models.tarn.modeling_tarn import" in (out / "qeff" / MODELING).read_text("utf-8")


def test_commands_for_upstreams_tree_say_so(folder: Path, out: Path, tmp_path: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    before = own.tree(out)
    for arguments, message in (
        (("bump", "5.99.0", "--out", out), "install transformers 5.99.0 and generate them again"),
        (("report", "--tree", out, "--out", tmp_path / "page.html"), "holds variants of your own models"),
        (("inspect", "llama", "--from", folder), "llama is not one of tarn"),
        (("generate", "llama", "--out", out), "llama is not one of tarn"),
    ):
        done = regraft(*arguments)
        assert done.code == 2 and message in done.err, done.err
    assert own.tree(out) == before and not (tmp_path / "page.html").exists()


def test_a_folder_that_is_gone(folder: Path, out: Path) -> None:
    regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    moved = folder.rename(folder.parent / "moved")
    done = regraft("check", "--out", out, "--jobs", 1)
    assert done.code == 2 and "which is gone; pass --from" in done.err
    assert regraft("generate", "--from", moved, "--out", out, "--jobs", 1).code == 0


# ------------------------------------------------------------------------------------------------------------- refusals


IMPORT = "from .configuration_tarn import TarnConfig\n"


def _imports(what: str, module: str) -> tuple[str, str]:
    return IMPORT, f"{IMPORT}from {module} import {what}\n"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        (
            [
                _imports("LlamaAttention", "transformers.models.llama.modeling_llama"),
                ("self.self_attn = TarnAttention(", "self.self_attn = LlamaAttention("),
            ],
            "TarnDecoderLayer.self_attn is LlamaAttention of transformers.models.llama.modeling_llama",
        ),
        (
            [
                _imports("LlamaDecoderLayer", "transformers.models.llama.modeling_llama"),
                ("class TarnDecoderLayer(GradientCheckpointingLayer)", "class Unused(GradientCheckpointingLayer)"),
                (
                    "class TarnPreTrainedModel",
                    "class TarnDecoderLayer(LlamaDecoderLayer):\n    pass\n\n\nclass TarnPreTrainedModel",
                ),
            ],
            "TarnDecoderLayer takes its forward from LlamaDecoderLayer of transformers.models.llama.modeling_llama",
        ),
        (
            [
                _imports("eager_attention_forward", "transformers.models.llama.modeling_llama"),
                ("def eager_attention_forward(", "def unused("),
            ],
            "TarnAttention.forward uses eager_attention_forward of transformers.models.llama.modeling_llama",
        ),
        (
            [_imports("Block", ".blocks"), ("TarnDecoderLayer(config, index)", "Block(config, index)")],
            "TarnModel.layers is Block of transformers_modules.tarn.blocks",
        ),
    ],
)  # fmt: skip
def test_code_of_another_file_is_refused_by_name(
    folder: Path, out: Path, changes: list[tuple[str, str]], found: str
) -> None:
    edited(*changes)(folder)
    done = regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert (
        done.code == 1
        and f"[recognize/one-file] expected whatever sees the cache or the mask written in this file; found {found}"
        in done.err
    ), done.err
    for target in ("qeff", "rmpad"):
        index = (out / target / "__init__.py").read_text("utf-8")
        assert "recognize/one-file" in index and not (out / target / MODELING).exists()
    assert regraft("check", "--out", out, "--jobs", 1).code == 0, "a refusal that is known"
    assert regraft("generate", "--out", out, "--jobs", 1).code == 0


def test_a_norm_of_another_file_stays_as_it_is(folder: Path, out: Path) -> None:
    edited(
        _imports("LlamaRMSNorm, apply_rotary_pos_emb", "transformers.models.llama.modeling_llama"),
        ("class TarnRMSNorm(nn.Module)", "class Unused(nn.Module)"),
        ("class TarnRotary", "class TarnRMSNorm(LlamaRMSNorm):\n    pass\n\n\nclass TarnRotary"),
        ("def apply_rotary_pos_emb(", "def unused("),
    )(folder)
    done = regraft("generate", "--from", folder, "--out", out, "--jobs", 1)
    assert done.code == 0, done.err
    assert "TarnRMSNorm:" not in (out / "qeff" / MODELING).read_text("utf-8")
    assert "from transformers.models.llama.modeling_llama import apply_rotary_pos_emb" in (
        out / "qeff" / MODELING
    ).read_text("utf-8")
