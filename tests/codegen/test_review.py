"""What reviewers ask, answered from upstream's text and the generated tree; every answer is checked against both."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from codegen import __main__ as command
from codegen import presentation
from codegen.discovery import discover
from codegen.emit import manifest
from codegen.review import changed
from codegen.source import installed
from codegen.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated"
VARIANT = GENERATED / "qeff" / "modeling_llama.py"
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


def test_diff(run: Run) -> None:
    code, out, err = run("diff", "llama")
    assert code == 0 and not err
    assert f"--- upstream/{UPSTREAM}:LlamaAttention" in out
    assert "+++ qeff/modeling_llama.py:QEffLlamaAttention" in out
    before, after = set(_upstream()), set(VARIANT.read_text("utf-8").splitlines())
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


def test_diff_as_json(run: Run) -> None:
    code, out, _ = run("diff", "llama", "--json")
    diffs = json.loads(out)
    assert code == 0
    assert "QEffLlamaForCausalLM" in diffs and "+++" in diffs["QEffLlamaForCausalLM"]


def test_diff_of_a_refused_family_says_why(run: Run) -> None:
    code, out, err = run("diff", REFUSED)
    assert code == 2 and not out
    assert f"models/{REFUSED}/modeling_{REFUSED}.py:" in err and "expected" in err and "help:" in err


# ------------------------------------------------------------------------------------------------------------- inspect


def test_inspect(run: Run) -> None:
    code, out, err = run("inspect", "llama")
    assert code == 0 and not err
    for word in (
        "LlamaAttention",
        "attention",
        "qeff/cache-update",
        "carries the cache by self.layers",
        "LlamaRMSNorm",
    ):
        assert word in out


def test_inspect_shows_its_evidence(run: Run) -> None:
    """Every place is where upstream says it, and the rules are those that the manifest recorded."""
    code, out, _ = run("inspect", "llama", "--json")
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
    recorded = dict(remembered.entries["qeff", UPSTREAM].compiled.rules)
    inspected = {found["name"]: tuple(found["rules"]) for found in facts["classes"]}
    inspected |= {name: tuple(rules) for name, rules in facts["functions"]}
    assert {cls: rules for cls, rules in recorded.items() if rules} == {c: r for c, r in inspected.items() if r}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_inspect_a_refused_family(run: Run, options: list[str]) -> None:
    code, out, err = run("inspect", REFUSED, *options)
    assert code == 1
    if options:
        (problem, *_) = json.loads(out)["refused"]
        assert problem["line"] > 0 and problem["expected"] and problem["found"] and problem["help"]
    else:
        assert "refused" in err and "help:" in err


# ------------------------------------------------------------------------------------------------------------- explain


def _explain(run: Run, line: str) -> list[dict[str, str]]:
    """The explanation of the only line that holds the text."""
    (number,) = [n for n, text in enumerate(VARIANT.read_text("utf-8").splitlines(), 1) if line in text]
    code, out, _ = run("explain", f"{VARIANT}:{number}", "--json")
    assert code == 0
    found: list[dict[str, str]] = json.loads(out)
    return found


def test_explain_a_file(run: Run) -> None:
    code, out, _ = run("explain", VARIANT, "--json")
    found = json.loads(out)
    assert code == 0
    known = {step.rule.id: step.rule.why for step in TARGETS["qeff"].steps}
    remembered = manifest.read(GENERATED / manifest.NAME)
    assert remembered is not None
    recorded = {rule for _, rules in remembered.entries["qeff", UPSTREAM].compiled.rules for rule in rules}
    assert {one["rule"] for one in found} >= recorded
    for one in found:
        assert one["why"] == known[one["rule"]]
        assert _line_at(one["upstream"])
        assert one["before"] != one["after"]
    code, out, _ = run("explain", VARIANT)
    assert code == 0 and "qeff/mask-builder" in out and f"from {UPSTREAM}:" in out


@pytest.mark.parametrize(
    ("line", "rule", "upstream"),
    [
        ('"position_ids": position_ids, "batch_index": batch_index', "qeff/cache-update", "past_key_values.update("),
        ("QEffDynamicCache.from_legacy_cache(past_key_values)", "qeff/dynamic-cache", "if use_cache and"),
        ("last_token(hidden_states, position_ids)", "qeff/logits-slice", "hidden_states[:, slice_indices, :]"),
        ("past_key_values.to_legacy_cache()", "qeff/returned-cache", "past_key_values=past_key_values"),
    ],
)
def test_explain_a_changed_line(run: Run, line: str, rule: str, upstream: str) -> None:
    found = _explain(run, line)
    (one,) = [one for one in found if one["rule"] == rule]
    assert upstream in _line_at(one["upstream"])
    assert "".join(line.split()) in "".join(one["after"].split())


def test_explain_shows_of_a_signature_what_changed(run: Run) -> None:
    _, out, _ = run("explain", VARIANT)
    lines = [line.strip() for line in out.splitlines()]
    assert "- labels: torch.LongTensor | None = None" in lines
    assert "+ batch_index: torch.Tensor | None = None" in lines
    assert "+ self.model(..., batch_index=batch_index, comp_ctx_lengths=comp_ctx_lengths)" in lines
    assert not any(line[2:].startswith(("self,", "input_ids:", "inputs_embeds")) for line in lines)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ("self, a=1, b=2,", "self, a=1, *, c: int = 3, **k", (["b=2"], ["c: int = 3", "**k"])),
        ("f(a, b=1)", "f(a, b=2)", (["f(..., b=1)"], ["f(..., b=2)"])),
        ("f(a)", "g(a)", (["f(a)"], ["g(a)"])),
        ("f(a, b)", "f(b, a)", (["f(a, b)"], ["f(b, a)"])),
        ("x = 1", "", (["x = 1"], [])),
    ],
)
def test_what_an_edit_changed(before: str, after: str, shown: tuple[list[str], list[str]]) -> None:
    assert changed(before, after) == shown


@pytest.mark.parametrize("line", ["cos, sin = position_embeddings", "hidden_states = residual + hidden_states"])
def test_explain_an_untouched_line(run: Run, line: str) -> None:
    numbers = [n for n, text in enumerate(VARIANT.read_text("utf-8").splitlines(), 1) if line in text]
    code, out, _ = run("explain", f"{VARIANT}:{numbers[0]}", "--json")
    assert code == 0
    (one,) = json.loads(out)
    assert one["rule"] == "(upstream)" and _line_at(one["upstream"]).startswith(line)


def test_explain_a_line_of_no_method(run: Run) -> None:
    code, out, _ = run("explain", f"{VARIANT}:1")
    assert code == 0 and "no rule made this line" in out


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (f"{VARIANT}:999999", "lines"),
        (f"{VARIANT}:ten", "the line is a number"),
        ("generated/qeff/modeling_nothing.py", "is not a generated file"),
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


def test_one_rule_with_its_cases(run: Run) -> None:
    code, out, _ = run("rules", "qeff/cache-update")
    assert code == 0
    for word in ("why: ", "looks at: attention", "class CaseAttention:", "becomes:", '"batch_index": batch_index'):
        assert word in out


def test_coverage(run: Run) -> None:
    code, out, _ = run("coverage", "--json")
    rows = json.loads(out)["qeff"]
    assert code == 0
    assert [row["family"] for row in rows] == sorted(f.model_type for f in discover(installed()))
    for row in rows:
        assert row["state"] in ("verified", "default verified", "failed", "generated", "refused")
        assert bool(row["diagnostics"]) == (row["state"] == "refused")
        assert row["note"] or row["state"] in ("verified", "default verified")
    _, text, _ = run("coverage")
    assert "llama" in text and f"{sum(row['state'] == 'refused' for row in rows)} refused" in text


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
