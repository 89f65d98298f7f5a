"""Two releases, compared: what is spelling, what is meaning, and what becomes of the variants."""

import ast
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from bench import HEADS, Ended, modeling, rewrite, run, write_release

from codegen.drift import Drift
from codegen.emit import manifest
from codegen.source import open_release
from runtime.fingerprint import definitions
from runtime.fingerprint.dependence import Release as Imports
from runtime.fingerprint.dependence import compared
from runtime.fingerprint.reliance import Reliance

SAME, DIFFERENT, UNUSABLE = 0, 1, 2
LLAMA = {"llama": HEADS["llama"]}

Compare = Callable[..., Ended]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release ``old`` of two families, and the tree of it, so that nothing is compiled twice."""
    root = tmp_path_factory.mktemp("drift")
    write_release(root / "old", "1.0.0", {name: HEADS[name] for name in ("llama", "phi")})
    assert run("generate", "--source", root / "old", "--out", root / "generated", "--jobs", 1).code == SAME
    return root


@pytest.fixture
def new(trees: Path, tmp_path: Path) -> Path:
    """A copy of the old release, to be changed."""
    shutil.copytree(trees / "old", tmp_path / "new")
    (tmp_path / "new/__init__.py").write_text('__version__ = "2.0.0"\n')
    return tmp_path / "new"


@pytest.fixture
def compare(trees: Path) -> Compare:
    def start(new: Path, *options: str) -> Ended:
        before = sorted(trees.rglob("*"))
        done = run("drift", trees / "old", new, "--out", trees / "generated", "--jobs", 1, *options)
        assert sorted(trees.rglob("*")) == before, "nothing is written"
        return done

    return start


def _family(report: object, name: str) -> dict[str, object]:
    assert isinstance(report, dict)
    (found,) = [f for f in report["families"] if f["family"] == name]
    return found


def _outcomes(family: dict[str, object]) -> list[str]:
    variants = family["variants"]
    assert isinstance(variants, dict)
    return [variants[target]["outcome"] for target in ("qeff", "rmpad")]


def _changed(family: dict[str, object]) -> dict[str, str]:
    compared = family["methods"]
    assert isinstance(compared, dict)
    return {name: drift for name, drift in compared.items() if drift != Drift.UNCHANGED.value}


def test_the_same_text(new: Path, compare: Compare) -> None:
    done = compare(new, "--json")
    assert done.code == SAME
    assert done.json["upstream"] == {"unchanged": 2}
    assert done.json["variants"] == {"qeff": {"unchanged": 2}, "rmpad": {"unchanged": 2}}
    assert (done.json["from"], done.json["to"]) == ("1.0.0", "2.0.0")


def test_a_renamed_local_is_spelling(new: Path, compare: Compare) -> None:
    rewrite(new, "llama", ("attn_output", "attended"))
    done = compare(new, "--json")
    assert done.code == SAME
    llama = _family(done.json, "llama")
    assert llama["upstream"] == "spelling only"
    assert _changed(llama)["LlamaAttention.forward"] == "spelling only"
    assert set(_changed(llama).values()) == {"spelling only"}
    assert _outcomes(llama) == ["changed", "changed"], "the variant has upstream's names"
    assert _family(done.json, "phi")["upstream"] == "unchanged"


@pytest.mark.parametrize(
    ("change", "method"),
    [
        (("scaling=self.scaling,", ""), "LlamaAttention.forward"),
        (("self.scaling = self.head_dim**-0.5", "self.scaling = 1.0"), "LlamaAttention.__init__"),
        (("torch.cat((-x2, x1), dim=-1)", "torch.cat((x2, x1), dim=-1)"), "rotate_half"),
        (("hidden_states = residual + hidden_states", "hidden_states = hidden_states"), "LlamaDecoderLayer.forward"),
        (("eps=config.rms_norm_eps", "eps=1e-3"), "LlamaDecoderLayer.__init__"),
    ],
)
def test_meaning_is_seen_where_it_changed(new: Path, compare: Compare, change: tuple[str, str], method: str) -> None:
    rewrite(new, "llama", change)
    done = compare(new, "--json")
    assert done.code == DIFFERENT
    llama = _family(done.json, "llama")
    assert llama["upstream"] == "semantic" and _changed(llama)[method] == "semantic"


MASKS = "masking_utils.py"


def test_a_changed_mask_builder_shows_for_those_who_use_it(new: Path, compare: Compare) -> None:
    path = new / MASKS
    text = path.read_text("utf-8")
    assert text.count("return kv_idx <= q_idx") == 1
    path.write_text(text.replace("return kv_idx <= q_idx", "return kv_idx < q_idx"), "utf-8")
    done = compare(new, "--json")
    assert done.code == DIFFERENT
    for name in ("llama", "phi"):
        family = _family(done.json, name)
        assert family["upstream"] == "unchanged" and family["differs"] is True
        assert family["imported"] == {f"{MASKS}:causal_mask_function": "semantic"}
    page = compare(new, "--markdown").out
    assert f"| `{MASKS}:causal_mask_function` | semantic | 2: llama, phi |" in page
    assert f"imported: semantic      {MASKS}:causal_mask_function (2 families)" in compare(new).out


def _alter(root: Path, path: str, before: str, after: str) -> None:
    text = (root / path).read_text("utf-8")
    assert text.count(before) == 1, before
    (root / path).write_text(text.replace(before, after), "utf-8")


ROTARY = "modeling_rope_utils.py"
YARN = f"{ROTARY}:_compute_yarn_parameters"


def test_a_changed_rotary_initialiser_shows_for_those_who_use_it(new: Path, compare: Compare) -> None:
    """It is in a table, which is what the modeling files import."""
    _alter(new, ROTARY, "return 0.1 * mscale * math.log(scale) + 1.0", "return 0.2 * mscale * math.log(scale) + 1.0")
    done = compare(new, "--json")
    assert done.code == DIFFERENT
    for name in ("llama", "phi"):
        family = _family(done.json, name)
        assert family["upstream"] == "unchanged" and family["imported"] == {YARN: "semantic"}


ALTERED = {
    "a rotary initialiser": (
        (ROTARY, "return 0.1 * mscale * math.log(scale) + 1.0", "return 0.2 * mscale * math.log(scale) + 1.0"),
    ),
    "a table": (("activations.py", '"gelu": GELUActivation,', '"gelu": NewGELUActivation,'),),
    "a mask that is gone": ((MASKS, "def create_causal_mask(", "def make_causal_mask("),),
    "a helper that is new": (
        (MASKS, "return kv_idx <= q_idx", "return helper(kv_idx, q_idx)"),
        (MASKS, "def causal_mask_function(", "def helper(a, b):\n    return a < b\n\n\ndef causal_mask_function("),
    ),
    "a decorator and a method": (
        (ROTARY, "def dynamic_rope_update(rope_forward):", "def dynamic_rope_update(rope_forward, early=True):"),
        (modeling("llama"), "scaling=self.scaling,", ""),
    ),
    "what no variant runs": (
        ("activations.py", '"gelu": GELUActivation,', '"gelu": GELUActivation, "gelu_of_tomorrow": NewActivation,'),
        ("activations.py", "class GELUActivation(", "class NewActivation(nn.Module): ...\n\n\nclass GELUActivation("),
        (ROTARY, "class RopeParameters(TypedDict):", "class RopeParameters(TypedDict, total=False):"),
    ),
}


@pytest.mark.parametrize("edits", ALTERED.values(), ids=list(ALTERED))
def test_the_runtime_would_name_the_same(
    new: Path, compare: Compare, trees: Path, edits: tuple[tuple[str, str, str], ...]
) -> None:
    """What the manifest recorded, asked of the new release as the import guard does, differs where drift says so."""
    for edit in edits:
        _alter(new, *edit)
    done = compare(new, "--json")
    written = manifest.read(trees / "generated" / manifest.NAME)
    assert written is not None
    for name in ("llama", "phi"):
        family = _family(done.json, name)
        imported = family["imported"]
        assert isinstance(imported, dict)
        told = {one for one, drift in (_changed(family) | imported).items() if drift != Drift.SPELLING.value}
        asked: set[str] = set()
        for target in ("qeff", "rmpad"):
            row = written.entries[target, modeling(name)].compiled
            release = Imports(open_release(new).text_if_readable)
            asked |= compared(release, row.path, dict(row.methods), dict(row.relied_on), dict(row.imported)).keys()
        assert told == asked
        assert bool(told) is (edits != ALTERED["what no variant runs"])


def test_what_nobody_uses_of_an_imported_file_does_not_show(new: Path, compare: Compare) -> None:
    path = new / MASKS
    path.write_text(path.read_text("utf-8") + "\n\ndef nobody():\n    return 1\n", "utf-8")
    done = compare(new, "--json")
    assert done.code == SAME
    assert _family(done.json, "llama")["imported"] == {}


def test_a_value_of_the_module_counts(new: Path, compare: Compare) -> None:
    rewrite(
        new,
        "llama",
        ("self.scaling = self.head_dim**-0.5", "self.scaling = self.head_dim**POWER"),
        ("def rotate_half", "POWER = -0.5\n\n\ndef rotate_half"),
    )
    older = new.parent / "older"
    shutil.copytree(new, older)
    rewrite(new, "llama", ("POWER = -0.5", "POWER = -1.0"))
    done = run("drift", older, new, "--out", new.parent / "generated", "--jobs", 1, "--json")
    assert done.code == DIFFERENT
    assert _changed(_family(done.json, "llama")) == {"POWER": "semantic"}


def test_families_that_come_and_go(new: Path, compare: Compare, tmp_path: Path) -> None:
    write_release(tmp_path / "other", "2.0.0", {name: HEADS[name] for name in ("glm", "llama")})
    done = compare(tmp_path / "other", "--json")
    assert done.code == DIFFERENT
    assert _family(done.json, "glm")["upstream"] == "new"
    assert _outcomes(_family(done.json, "glm")) == ["newly supported"] * 2
    assert _family(done.json, "phi")["upstream"] == "removed"
    assert _outcomes(_family(done.json, "phi")) == ["removed"] * 2
    assert _family(done.json, "llama")["differs"] is False


UPDATE = "past_key_values.update(key_states, value_states, self.layer_idx)"


def test_a_newly_refused_family_says_why_and_back_again(new: Path, compare: Compare, trees: Path) -> None:
    rewrite(new, "phi", (UPDATE, "past_key_values.update(*states, self.layer_idx)"))
    done = compare(new, "--json")
    assert done.code == DIFFERENT
    phi = _family(done.json, "phi")
    assert _outcomes(phi) == ["newly refused"] * 2
    variants = phi["variants"]
    assert isinstance(variants, dict)
    (why,) = variants["qeff"]["diagnostics"]
    assert why["family"] == "phi" and why["file"] == modeling("phi") and why["line"] > 0
    assert phi["upstream"] == "semantic" and _changed(phi) == {"PhiAttention.forward": "semantic"}

    back = run("drift", new, trees / "old", "--out", trees / "generated", "--jobs", 1, "--json")
    assert back.code == DIFFERENT
    assert _outcomes(_family(back.json, "phi")) == ["newly supported"] * 2
    assert _changed(_family(back.json, "phi")) == {"PhiAttention.forward": "semantic"}


def test_a_refused_family_is_not_compared(new: Path, trees: Path) -> None:
    rewrite(new, "phi", (UPDATE, "past_key_values.update(*states, self.layer_idx)"))
    done = run("drift", new, new, "--out", trees / "generated", "--jobs", 1, "--json")
    assert done.code == SAME
    phi = _family(done.json, "phi")
    assert phi["upstream"] == "not compared" and phi["methods"] == {} and _outcomes(phi) == ["refused"] * 2


def test_a_damaged_file_is_a_new_refusal(new: Path, compare: Compare) -> None:
    text = (new / modeling("phi")).read_text("utf-8")
    (new / modeling("phi")).write_text(text[: text.index("self.dense(attn_output)") + 11], "utf-8")
    done = compare(new, "--json")
    assert done.code == DIFFERENT
    phi = _family(done.json, "phi")
    assert phi["upstream"] == "not compared" and _outcomes(phi) == ["newly refused"] * 2


def test_what_a_reader_sees(new: Path, compare: Compare) -> None:
    rewrite(new, "llama", ("scaling=self.scaling,", ""))
    rewrite(new, "phi", (UPDATE, "past_key_values.update(*states, self.layer_idx)"))
    plain = compare(new)
    assert plain.code == DIFFERENT
    assert "transformers 1.0.0 -> 2.0.0" in plain.out
    assert "newly refused by qeff: phi: models/phi/modeling_phi.py:" in plain.out
    assert "semantic      LlamaAttention.forward" in plain.out
    page = compare(new, "--markdown")
    assert page.code == DIFFERENT
    assert page.out.startswith("# transformers 1.0.0 -> 2.0.0\n")
    refused = page.out.split("## Newly refused\n")[1].split("## ")[0]
    assert refused.count("| phi |") == 2 and "recognize/cache-path" in refused
    meaning = page.out.split("## Changed in meaning\n")[1]
    assert "| llama | semantic: `LlamaAttention.forward` | changed | changed |" in meaning
    for table in page.out.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1, table


@pytest.mark.parametrize("place", ["nowhere", "nowhere/x.whl", "."])
def test_no_release(trees: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("drift", trees / "old", place)
    assert done.code == UNUSABLE and place in done.err


def test_two_forms_at_once(trees: Path) -> None:
    assert run("drift", trees / "old", trees / "old", "--json", "--markdown").code == UNUSABLE


def test_reliance() -> None:
    text = """
class Base:
    factor = 2
    def __init__(self): self.scale = 1
    def help(self): return inner()
    def other(self): return unused()
class Part(Base):
    def forward(self): return self.help()
class Aside:
    def forward(self): return 0
def inner(): return deeper
if fast:
    def deeper(): return 1
else:
    def deeper(): return 0
def unused(): return 2
"""
    found = Reliance(definitions(ast.parse(text))).of(["Part.forward", "Gone.forward"])
    assert found == {"Part.forward", "Part", "Base", "Base.__init__", "Base.help", "inner", "deeper", "deeper#2"}
