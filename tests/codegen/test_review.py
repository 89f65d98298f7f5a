"""What reviewers ask, answered from upstream's text and the generated tree; every answer is checked against both."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from codegen import __main__ as command
from codegen import presentation
from codegen.comparison.lineage import UNEXPLAINED, WHY
from codegen.discovery import discover
from codegen.emit import manifest
from codegen.review import changed
from codegen.source import installed
from codegen.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated"
VARIANTS = {target: GENERATED / target / "modeling_llama.py" for target in TARGETS}
VARIANT = VARIANTS["qeff"]
UPSTREAM = "models/llama/modeling_llama.py"
REFUSED = "mamba"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command in this process: exit code, standard output, standard error."""

    def start(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["regraft", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return start


def _upstream() -> list[str]:
    return installed().text(UPSTREAM).splitlines()


def _line_at(place: str) -> str:
    """The text that ``path:line:column`` points at."""
    path, line, column = place.rsplit(":", 2)
    assert path == UPSTREAM
    return _upstream()[int(line) - 1][int(column) - 1 :]


# ---------------------------------------------------------------------------------------------------------------- diff


@pytest.mark.parametrize("target", TARGETS)
def test_diff(run: Run, target: str) -> None:
    code, out, err = run("diff", "llama", "--target", target)
    assert code == 0 and not err
    assert f"--- upstream/{UPSTREAM}:LlamaAttention" in out
    assert f"+++ {target}/modeling_llama.py:{TARGETS[target].prefix}LlamaAttention" in out
    runtime = (ROOT / "runtime/qeff/attention.py").read_text("utf-8")  # the variant imports a function from there
    assert ("+++ runtime.qeff.attention.eager_attention_forward" in out) == (target == "qeff")
    before, after = set(_upstream()), {*VARIANTS[target].read_text("utf-8").splitlines(), *runtime.splitlines()}
    changed = 0
    for line in out.splitlines():
        if line.startswith(("---", "+++", "@@")) or not line:
            continue
        if line[0] in " -":
            assert line[1:] in before, line
        if line[0] in " +":
            assert line[1:] in after, line
        changed += line[0] in "+-"
    assert 20 < changed < 200, "a small diff"


@pytest.mark.parametrize("target", TARGETS)
def test_diff_names_the_rules_of_every_hunk(run: Run, target: str) -> None:
    _, out, _ = run("diff", "llama", "--target", target)
    known = {step.rule.id for step in TARGETS[target].steps}
    named: set[str] = set()
    for line in out.splitlines():
        if line.startswith("@@"):
            where, _, rules = line.split("@@ ")[2].partition(": ")
            named |= set(rules.split(", "))
            assert rules and where.split(".")[0].removeprefix(TARGETS[target].prefix) in out
    remembered = manifest.read(GENERATED / manifest.NAME)
    assert remembered is not None
    recorded = {rule for _, rules in remembered.entries[target, UPSTREAM].compiled.rules for rule in rules}
    assert named & known == recorded
    assert named - known <= set(WHY) - {UNEXPLAINED}


def test_diff_on_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coloured, with reasons, and a page at a time unless it is short, or told otherwise."""
    paged: list[str] = []
    monkeypatch.setattr("click.echo_via_pager", lambda text, color: paged.append(text) if color else paged.append(""))
    monkeypatch.setattr(presentation, "OUT", Console(force_terminal=True, width=200, height=30, no_color=False))
    code, out, _ = run("diff", "llama", "--no-pager")
    assert code == 0 and not paged
    assert "\x1b[" in out and "qeff/loss: " in out and "PrecomputedRotary stands in front" in out
    assert run("diff", "llama") == (0, "", "") and paged == [out]
    monkeypatch.setattr(presentation.OUT, "height", 10_000)
    assert run("diff", "llama")[1] == out and len(paged) == 1
    monkeypatch.setattr(presentation, "OUT", Console(force_terminal=True, width=200, height=30, no_color=True))
    assert "\x1b[3" not in run("diff", "llama", "--no-pager")[1], "no colours"
    run("diff", "llama")
    assert paged[1:] == [""], "the pager is told, too"


@pytest.mark.parametrize("target", TARGETS)
def test_diff_as_json(run: Run, target: str) -> None:
    code, out, _ = run("diff", "llama", "--json", "--target", target)
    diffs = json.loads(out)
    head = f"{TARGETS[target].prefix}LlamaForCausalLM"
    assert code == 0
    assert head in diffs and "+++" in diffs[head]


def test_without_a_target_it_is_inference(run: Run) -> None:
    for command_name in ("diff", "inspect"):
        assert run(command_name, "llama") == run(command_name, "llama", "--target", "qeff")


@pytest.mark.parametrize("target", TARGETS)
def test_diff_of_a_refused_family_says_why(run: Run, target: str) -> None:
    code, out, err = run("diff", REFUSED, "--target", target)
    assert code == 2 and not out
    assert f"models/{REFUSED}/modeling_{REFUSED}.py:" in err and "expected" in err and "help:" in err


# ------------------------------------------------------------------------------------------------------------- inspect


@pytest.mark.parametrize(("target", "rule"), [("qeff", "qeff/cache-update"), ("rmpad", "rmpad/rotary-kernel")])
def test_inspect(run: Run, target: str, rule: str) -> None:
    code, out, err = run("inspect", "llama", "--target", target)
    assert code == 0 and not err
    for word in (
        "LlamaAttention",
        "attention",
        rule,
        "carries the cache by self.layers",
        "LlamaRMSNorm",
    ):
        assert word in out


@pytest.mark.parametrize("target", TARGETS)
def test_inspect_shows_its_evidence(run: Run, target: str) -> None:
    """Every place is where upstream says it, and the rules are those that the manifest recorded."""
    code, out, _ = run("inspect", "llama", "--json", "--target", target)
    facts = json.loads(out)
    assert code == 0
    assert facts["path"] == UPSTREAM and facts["head"] == "LlamaForCausalLM" and not facts["refused"]
    for found in facts["classes"]:
        assert _line_at(found["place"]).startswith(f"class {found['name']}(")
    for _, _, place in facts["norms"]:
        assert _line_at(place).startswith("def forward(")
    for _, place in facts["rotaries"]:
        assert _line_at(place).startswith("def forward(")
    assert facts["switches"] and all(lines for _, _, lines in facts["switches"])
    for field, kind, lines in facts["switches"]:
        assert kind != "flag" or any(field in _upstream()[line - 1] for line in lines), field
    remembered = manifest.read(GENERATED / manifest.NAME)
    assert remembered is not None
    recorded = dict(remembered.entries[target, UPSTREAM].compiled.rules)
    assert any(recorded.values())
    inspected = {found["name"]: tuple(found["rules"]) for found in facts["classes"]}
    inspected |= {name: tuple(rules) for name, rules in facts["functions"]}
    assert {cls: rules for cls, rules in recorded.items() if rules} == {c: r for c, r in inspected.items() if r}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect_a_refused_family(run: Run, options: list[str], target: str) -> None:
    code, out, err = run("inspect", REFUSED, *options, "--target", target)
    assert code == 1
    if options:
        (problem, *_) = json.loads(out)["refused"]
        assert problem["line"] > 0 and problem["expected"] and problem["found"] and problem["help"]
    else:
        assert "refused" in err and "help:" in err


# ------------------------------------------------------------------------------------------------------------- explain


def _explain(run: Run, variant: Path, line: str) -> list[dict[str, str]]:
    """The explanation of the first line that holds the text."""
    number = next(n for n, text in enumerate(variant.read_text("utf-8").splitlines(), 1) if line in text)
    code, out, _ = run("explain", f"{variant}:{number}", "--json")
    assert code == 0
    found: list[dict[str, str]] = json.loads(out)
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_explain_a_file(run: Run, target: str) -> None:
    code, out, _ = run("explain", VARIANTS[target], "--json")
    found = json.loads(out)
    assert code == 0
    known = {step.rule.id: step.rule.why for step in TARGETS[target].steps}
    remembered = manifest.read(GENERATED / manifest.NAME)
    assert remembered is not None
    recorded = {rule for _, rules in remembered.entries[target, UPSTREAM].compiled.rules for rule in rules}
    assert {one["rule"] for one in found} >= recorded
    for one in found:
        assert one["why"] == known[one["rule"]]
        assert _line_at(one["upstream"])
        assert one["before"] != one["after"]
    code, out, _ = run("explain", VARIANTS[target])
    assert code == 0 and f"{target}/mask-builder: " in out and f"from {UPSTREAM}:" in out


@pytest.mark.parametrize(
    ("line", "rule", "upstream"),
    [
        ('"position_ids": position_ids, "batch_index": batch_index', "qeff/cache-update", "past_key_values.update("),
        ("QEffDynamicCache.from_legacy_cache(past_key_values)", "qeff/dynamic-cache", "if use_cache and"),
        ("last_token(hidden_states, position_ids)", "qeff/logits-slice", "hidden_states[:, slice_indices, :]"),
        ("past_key_values.to_legacy_cache()", "qeff/returned-cache", "past_key_values=past_key_values"),
        ("rotary(self, apply_rotary_pos_emb)", "rmpad/rotary-kernel", "query_states, key_states = apply_rotary"),
        ("attention_interface: Callable = attention_for(", "rmpad/attention-dispatch", "attention_interface: Callable"),
        ("gated(self, self.act_fn", "rmpad/gated-activation", "down_proj = self.down_proj("),
        ("= no_cache(attention_mask", "rmpad/packed-input", "if (input_ids is None) ^"),
        ("loss = cross_entropy_for(self)(", "rmpad/loss", "loss = self.loss_function("),
        ("logits = None", "rmpad/fused-loss", "slice_indices = slice("),
        ("logits = unpacked(self, logits", "rmpad/unpacked-logits", "def forward("),
    ],
)
def test_explain_a_changed_line(run: Run, line: str, rule: str, upstream: str) -> None:
    found = _explain(run, VARIANTS[rule.split("/")[0]], line)
    assert [one["rule"] for one in found] == [rule], "and no rule is named that found the line there"
    assert upstream in _line_at(found[0]["upstream"])
    assert "".join(line.split("= ")[-1].split()) in "".join(found[0]["after"].split())


def test_explain_upstreams_line_that_calls_another_function(run: Run) -> None:
    own, one = _explain(run, VARIANTS["rmpad"], "causal_mask = create_causal_mask(")
    assert own["rule"] == "(upstream)" and one["rule"] == "rmpad/mask-builder"
    assert one["before"] == "from transformers.masking_utils import create_causal_mask"
    assert one["after"] in VARIANTS["rmpad"].read_text("utf-8").splitlines()
    assert _line_at(one["upstream"]).startswith("causal_mask = create_causal_mask(")


def test_explain_shows_of_a_signature_what_changed(run: Run) -> None:
    _, out, _ = run("explain", VARIANT)
    lines = [line.strip() for line in out.splitlines()]
    assert "- labels: torch.LongTensor | None = None" in lines
    assert "+ batch_index: torch.Tensor | None = None" in lines
    assert "+ self.model(..., batch_index=batch_index, comp_ctx_lengths=comp_ctx_lengths)" in lines
    assert not any(line[2:].startswith(("self,", "input_ids:", "inputs_embeds")) for line in lines)


def test_explain_shows_of_a_method_what_changed(run: Run) -> None:
    """Rules of the training target put statements into whole methods."""
    _, out, _ = run("explain", VARIANTS["rmpad"])
    added = [line.strip()[2:].strip() for line in out.splitlines() if line.startswith("  + ")]
    assert "use_cache = no_cache(attention_mask, past_key_values, use_cache)" in added
    assert "logits = unpacked(self, logits, attention_mask)" in added
    shown = [line for line in out.splitlines() if line.startswith(("  + ", "  - "))]
    assert len(shown) < 50 and not any("hidden_states = outputs" in line for line in shown)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("self, a=1, b=2,", "self, a=1, *, c: int = 3, **k", (["b=2"], ["c: int = 3", "**k"])),
        ("f(a, b=1)", "f(a, b=2)", (["f(..., b=1)"], ["f(..., b=2)"])),
        ("f(a)", "g(a)", (["f(a)"], ["g(a)"])),
        ("f(a, b)", "f(b, a)", (["f(a, b)"], ["f(b, a)"])),
        ("x = 1", "", (["x = 1"], [])),
        ("a = 1\nb = 2", "a = 1\nc = 3\nb = 2", ([], ["c = 3"])),
        ("a = 1\n\nb = 2", "if c:\n    a = 1\n    b = 3", (["b = 2"], ["if c:", "    b = 3"])),
        ("\n    a = 1\n    b = 2", "\n    a = 1\n    b = 3", (["b = 2"], ["b = 3"])),
        ("a: int = f(\n    1\n)", "", (["a: int = f(", "    1", ")"], [])),
    ],
)
def test_what_an_edit_changed(before: str, after: str, shown: tuple[list[str], list[str]]) -> None:
    assert changed(before, after) == shown


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("line", ["cos, sin = position_embeddings", "hidden_states = self.norm(hidden_states)"])
def test_explain_an_untouched_line(run: Run, line: str, target: str) -> None:
    (one,) = _explain(run, VARIANTS[target], line)
    assert one["rule"] == "(upstream)" and _line_at(one["upstream"]).startswith(line)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_explain_a_line_of_no_method(run: Run, variant: Path) -> None:
    code, out, _ = run("explain", f"{variant}:1")
    assert code == 0 and "no rule made this line" in out


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (f"{VARIANT}:999999", "lines"),
        (f"{VARIANT}:ten", "the line is a number"),
        *((f"generated/{target}/modeling_nothing.py", "is not a generated file") for target in TARGETS),
        (str(Path(__file__)), "is not a generated file"),
    ],
)
def test_explain_what_cannot_be_explained(run: Run, place: str, said: str) -> None:
    code, _, err = run("explain", place)
    assert code == 2 and said in err


# --------------------------------------------------------------------------------------------------- rules and coverage


def test_rules(run: Run) -> None:
    code, out, _ = run("rules", "--json")
    listed = json.loads(out)
    assert code == 0
    assert [r["id"] for r in listed] == [step.rule.id for target in TARGETS.values() for step in target.steps]
    assert all(r["summary"] and r["why"] and r["roles"] and r["cases"] and r["expects"] for r in listed)
    _, text, _ = run("rules")
    assert [line.split(":")[0] for line in text.splitlines()] == [r["id"] for r in listed]


@pytest.mark.parametrize(
    ("rule", "becomes"),
    [
        ("qeff/cache-update", '"batch_index": batch_index'),
        ("rmpad/rotary-kernel", "rotary(self, apply_rotary_pos_emb)"),
    ],
)
def test_one_rule_with_its_cases(run: Run, rule: str, becomes: str) -> None:
    code, out, _ = run("rules", rule)
    assert code == 0
    for word in ("why: ", "looks at: attention", "class CaseAttention:", "becomes:", becomes):
        assert word in out


def test_coverage(run: Run) -> None:
    code, out, _ = run("coverage", "--json")
    tables = json.loads(out)
    assert code == 0 and list(tables) == list(TARGETS)
    _, text, _ = run("coverage")
    for rows in tables.values():
        assert [row["family"] for row in rows] == sorted(f.model_type for f in discover(installed()))
        for row in rows:
            assert row["state"] in ("verified", "default verified", "failed", "generated", "refused")
            assert bool(row["diagnostics"]) == (row["state"] == "refused")
            assert row["note"] or row["state"] in ("verified", "default verified")
        assert f"{sum(row['state'] == 'refused' for row in rows)} refused" in text
    assert text.count(" llama ") >= len(TARGETS)


def test_coverage_fits_a_narrow_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presentation.OUT, "width", 80)
    _, text, _ = run("coverage")
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    beginnings = {line.split()[0] for line in lines if line.strip()}
    assert beginnings >= {f.model_type for f in discover(installed())}


def test_coverage_of_nothing(run: Run, tmp_path: Path) -> None:
    code, _, err = run("coverage", "--out", tmp_path)
    assert code == 2 and "run regraft generate" in err
