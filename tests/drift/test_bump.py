"""A bump writes the tree and the pins together, or nothing at all."""

import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from bench import CONSTRAINTS, HEADS, PIN, Ended, contents, rewrite, run, write_release

from codegen import store, verification
from codegen.emit import manifest, verified
from codegen.verification import Verified
from runtime.verify.results import CaseResult, Check, FamilyResult, Status, status_of
from runtime.verify.targets import target_named

DONE, DIFFERENT, UNUSABLE, INTERRUPTED = 0, 1, 2, 130
NAMES = ("llama", "phi")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Releases 1.0.0 and 2.0.0, and a project made for the first; made once."""
    root = tmp_path_factory.mktemp("bump")
    for name, version in (("old", "1.0.0"), ("new", "2.0.0")):
        write_release(root / name, version, {name: HEADS[name] for name in NAMES})
    rewrite(root / "new", "llama", ("scaling=self.scaling,", ""))
    project = root / "project"
    project.mkdir()
    assert run("generate", "--source", root / "old", "--out", project / "generated", "--jobs", 1).code == DONE
    (project / "pyproject.toml").write_text(PIN)
    (project / "constraints.txt").write_text(CONSTRAINTS)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return tmp_path


def _bump(root: Path, *options: object, version: str = "2.0.0") -> Ended:
    sources = ("--source", root / "new", "--base", root / "old")
    return run("bump", version, *sources, "--out", root / "project/generated", "--jobs", 1, *options)


def test_tree_and_pins_move_together(root: Path) -> None:
    project = root / "project"
    before = contents(project)
    done = _bump(root)
    assert done.code == DIFFERENT
    after = contents(project)
    assert {path for path in after if after[path] != before.get(path)} == {
        "pyproject.toml", "constraints.txt", "generated/MANIFEST.toml", "generated/COVERAGE.md",
        "generated/qeff/modeling_llama.py", "generated/rmpad/modeling_llama.py",
    }  # fmt: skip
    assert set(before) == set(after), "nothing is left behind"
    assert after["pyproject.toml"][0].decode() == PIN.replace("==1.0.0", "==2.0.0").replace("== 1.0.0", "== 2.0.0")
    assert after["constraints.txt"][0].decode() == CONSTRAINTS.replace("transformers==1.0.0", "transformers==2.0.0")
    written = manifest.read(project / "generated" / manifest.NAME)
    assert written is not None and written.version == "2.0.0"
    assert "scaling=self.scaling" not in after["generated/qeff/modeling_llama.py"][0].decode()
    assert "semantic      LlamaAttention.forward" in done.out
    assert "6 files written, 0 removed; the pin is 2.0.0" in done.out
    assert "regraft verify --target qeff --record llama\n  regraft verify --target rmpad --record llama" in done.out
    assert run("check", "--source", root / "new", "--out", project / "generated", "--jobs", 1).code == DONE


def test_once_more_changes_nothing(root: Path) -> None:
    assert _bump(root).code == DIFFERENT
    before = contents(root / "project")
    again = run(
        "bump", "2.0.0", "--source", root / "new", "--base", root / "new",
        "--out", root / "project/generated", "--jobs", 1, "--json",
    )  # fmt: skip
    assert again.code == DONE and again.json["written"] == again.json["verify"] == []
    assert contents(root / "project") == before


@pytest.mark.parametrize("options", [(), ("--json",), ("--markdown",)])
def test_a_dry_run_writes_nothing(root: Path, options: tuple[str, ...]) -> None:
    before = contents(root)
    done = _bump(root, "--dry-run", *options)
    assert done.code == DIFFERENT and "LlamaAttention.forward" in done.out
    assert contents(root) == before
    if options == ("--json",):
        assert done.json["written"] == [] and done.json["verify"][0] == "regraft verify --target qeff --record llama"
    else:
        assert "nothing was written" in done.out + done.err


def test_refusals_and_families_that_go(root: Path) -> None:
    update = "past_key_values.update(key_states, value_states, self.layer_idx)"
    rewrite(root / "new", "phi", (update, "past_key_values.update(*states, self.layer_idx)"))
    done = _bump(root, "--json")
    assert done.code == DIFFERENT
    assert done.json["removed"] == ["qeff/modeling_phi.py", "rmpad/modeling_phi.py"]
    assert not (root / "project/generated/qeff/modeling_phi.py").exists()


@pytest.mark.parametrize("failing", range(6))
def test_a_write_that_fails_leaves_everything(root: Path, failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(root)
    replace, calls = os.replace, 0

    def full(source: object, target: object) -> None:
        nonlocal calls
        calls += 1
        if calls == failing + 1:
            raise OSError(28, "No space left on device", str(target))
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(store.os, "replace", full)
    done = _bump(root)
    monkeypatch.undo()
    assert calls > failing and done.code == UNUSABLE
    assert "the disk is full" in done.err and "the tree is as it was" in done.err
    assert contents(root) == before


def _killed(root: Path, replaced: int) -> None:
    """A bump whose process ends with the pins moved and part of the tree: what a power cut leaves."""
    child = os.fork()
    if child == 0:
        replace, calls = os.replace, 0

        def killed(source: object, target: object) -> None:
            nonlocal calls
            calls += 1
            if calls > replaced:
                os._exit(9)
            replace(source, target)  # type: ignore[arg-type]

        store.os.replace = killed  # type: ignore[assignment]
        _bump(root)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_killed_bump_is_undone_by_the_next_command_that_writes(root: Path) -> None:
    project = root / "project"
    before = contents(project)
    _killed(root, 3)
    assert (project / "pyproject.toml").read_text() != PIN, "the pin had moved"
    killed_there = contents(project)
    tree = project / "generated"
    readers: tuple[tuple[object, ...], ...] = (
        ("check", "--source", root / "old", "--out", tree),
        ("coverage", "--out", tree),
        ("report", "--source", root / "old", "--tree", tree, "--out", root / "page.html"),
        ("bump", "2.0.0", "--source", root / "new", "--base", root / "old", "--out", tree, "--dry-run"),
    )
    for reader in readers:
        done = run(*reader)
        assert done.code == UNUSABLE and "is half written" in done.err, reader
    assert contents(project) == killed_there, "who only reads mends nothing"
    assert run("generate", "--source", root / "old", "--out", tree, "--jobs", 1).code == DONE
    assert contents(project) == before


def test_a_killed_bump_is_run_again(root: Path) -> None:
    """What it had put in place is no edit by hand."""
    out = root / "project/generated"
    _killed(root, 4)  # both pins, the table and the manifest are new, every variant is old
    written = manifest.parse((out / manifest.NAME).read_bytes(), "")
    assert written.version == "2.0.0", "the manifest had moved"
    assert _bump(root).code == DIFFERENT
    assert run("check", "--source", root / "new", "--out", out, "--jobs", 1).code == DONE


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("pyproject.toml", None, "does not exist"),
        ("pyproject.toml", "[project\n", "is damaged"),
        ("pyproject.toml", "[project]\ndependencies = ['transformers>=1']\n", "pins no transformers"),
        ("pyproject.toml", "[tool.x]\n", "pins no transformers"),
        ("constraints.txt", "a==1\ntransformers==1.0.0 --hash=sha256:ab\n", "constraints.txt:2: the pin has options"),
        ("constraints.txt", "transformers==1.0.0 \\\n    --hash=sha256:ab\n", "constraints.txt:1: the pin has options"),
        ("generated/qeff/modeling_llama.py", "mine = 1\n", "edited by hand: qeff/modeling_llama.py"),
        ("generated/MANIFEST.toml", None, "holds no manifest"),
    ],
)
def test_what_cannot_be_written_is_said_before(root: Path, name: str, text: str | None, message: str) -> None:
    place = root / "project" / name
    place.unlink() if text is None else place.write_text(text)
    before = contents(root)
    for options in ((), ("--dry-run",)):
        done = _bump(root, *options)
        assert done.code == UNUSABLE and message in done.err
        assert contents(root) == before


def test_a_source_of_another_version(root: Path) -> None:
    before = contents(root)
    done = _bump(root, version="3.0.0")
    assert done.code == UNUSABLE and "the source is of 2.0.0, not of 3.0.0" in done.err
    assert run("bump", "newest", "--out", root / "project/generated").code == UNUSABLE
    assert contents(root) == before


def test_a_project_without_constraints(root: Path) -> None:
    (root / "project/constraints.txt").unlink()
    assert _bump(root).code == DIFFERENT
    assert not (root / "project/constraints.txt").exists()


@pytest.mark.parametrize("path", ["../x", "../../x", "../.regraft-commit"])
def test_a_generated_path_never_leaves_the_tree(root: Path, path: str) -> None:
    out = root / "project/generated"
    with pytest.raises(store.StoreError, match="not a plain relative path"):
        store.plan(out, {path: ""}, ())
    with pytest.raises(store.StoreError, match="not a plain relative path"):
        store.plan(out, {}, (path,))
    with pytest.raises(store.StoreError, match="not a plain relative path"):
        store.plan(out, {}, (), {f"../{path}": ""})


def _bump_requiring(root: Path, *requires: str) -> Ended:
    """To a release with metadata, as an unpacked wheel has it."""
    unpacked = root / "unpacked"
    metadata = unpacked / "transformers-2.0.0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    (root / "new").rename(unpacked / "transformers")
    lines = ["Metadata-Version: 2.1", "Name: transformers", "Version: 2.0.0"]
    metadata.write_text("\n".join([*lines, *(f"Requires-Dist: {line}" for line in requires)]) + "\n\nText\n")
    return run(
        "bump", "2.0.0", "--source", unpacked, "--base", root / "old",
        "--out", root / "project/generated", "--jobs", 1, "--json",
    )  # fmt: skip


def test_requirements_that_cannot_be_read(root: Path) -> None:
    before = contents(root / "project")
    done = _bump_requiring(root, "torch>=3,<4", "torch >=")
    assert done.code == UNUSABLE and "what transformers 2.0.0 requires cannot be read" in done.err
    assert contents(root / "project") == before


def test_pins_that_do_not_go_with_the_release(root: Path) -> None:
    """Said, and counted as a difference; which other pin to take is the reader's choice."""
    done = _bump_requiring(root, "torch>=3,<4", "transformers-stream>=1", "tokenizers>9", 'torch>9; extra == "new"')
    assert done.code == DIFFERENT
    said = "constraints.txt has torch==2.13.0, and transformers 2.0.0 requires torch<4,>=3"
    assert done.json["conflicts"] == [said]


def test_verification_needs_what_it_compares_with(root: Path) -> None:
    before = contents(root)
    done = _bump(root, "--verify")
    assert done.code == UNUSABLE and "--verify needs transformers 2.0.0 installed, and there is 5" in done.err
    assert _bump(root, "--verify", "--dry-run").code == UNUSABLE
    assert contents(root) == before


@pytest.mark.parametrize("status", [Status.PASSED, Status.FAILED])
def test_what_changed_is_verified(root: Path, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both targets, what changed alone, recorded; in one JSON document with the report."""
    asked = []

    def verify(target: str, families: Sequence[str], out: Path, **options: object) -> Verified:
        asked.append((target, *families, options["record"]))
        return Verified(tuple(FamilyResult(name, status) for name in families), target_named(target), ())

    monkeypatch.setattr(verification, "check_installed", lambda version, out: None)
    monkeypatch.setattr(verification, "run_verification", verify)
    done = _bump(root, "--verify", "--json")
    assert asked == [("qeff", "llama", True), ("rmpad", "llama", True)]
    assert done.code == DIFFERENT and done.json["written"]
    assert {target: [one["status"] for one in found] for target, found in done.json["verified"].items()} == {
        "qeff": [status.value],
        "rmpad": [status.value],
    }
    again = run(
        "bump", "2.0.0", "--source", root / "new", "--base", root / "new",
        "--out", root / "project/generated", "--jobs", 1, "--verify",
    )  # fmt: skip
    assert again.code == DONE and len(asked) == 2, "nothing changed, nothing to verify"


def test_a_report_in_markdown_ends_with_what_verification_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is the body of a pull request: headings and tables, nothing else."""
    passed = CaseResult("default", Status.PASSED, (Check("kv", "greedy", Status.PASSED, 2e-6),))
    failed = CaseResult("window", Status.FAILED, message="logits differ | by\nmuch")

    def verify(target: str, families: Sequence[str], out: Path, **options: object) -> Verified:
        cases = (passed,) if target == "qeff" else (passed, failed)
        results = tuple(FamilyResult(name, status_of([c.status for c in cases]), cases) for name in families)
        return Verified(results, target_named(target), ())

    monkeypatch.setattr(verification, "check_installed", lambda version, out: None)
    monkeypatch.setattr(verification, "run_verification", verify)
    done = _bump(root, "--verify", "--markdown")
    assert done.code == DIFFERENT and "the pin is 2.0.0" in done.err
    report, *sections = done.out.split("\n\n## Verified: ")
    assert report.startswith("# transformers 1.0.0 -> 2.0.0\n") and "## Changed in meaning" in report
    assert sections == [
        "qeff\n\n| family | result | cases passed | torch error | ONNX Runtime error | note |\n"
        "|---|---|---|---|---|---|\n| llama | passed | 1/1 | 2e-06 | - |  |",
        "rmpad\n\n| family | result | cases passed | logits error | loss error | gradient error | isolation error"
        " | training error | Liger error | note |\n|---|---|---|---|---|---|---|---|---|---|\n"
        "| llama | failed | 1/2 | - | - | - | - | - | - | window: logits differ \\| by much |\n",
    ]
    lines = done.out.splitlines()
    assert all(not line or line[0] in "#|" for line in lines), "no table of the terminal's in between"


@pytest.mark.parametrize("command", ["bump", "generate"])
@pytest.mark.parametrize("meaning_changes", [False, True])
def test_what_was_verified_against_another_meaning_is_not_verified(
    root: Path, meaning_changes: bool, command: str
) -> None:
    """Although the variant's own text is the same."""
    if meaning_changes:
        rewrite(root / "new", "phi", ("self.scaling = self.head_dim**-0.5", "self.scaling = self.head_dim**-0.25"))
    out = root / "project/generated"
    written = manifest.read(out / manifest.NAME)
    assert written is not None
    records: dict[str, dict[str, verified.Record]] = {}
    for (target, _), entry in written.entries.items():
        name = entry.compiled.generated[0].model_type
        records.setdefault(target, {})[name] = verified.Record(entry.output, True, 3)
    (out / verified.NAME).write_text(verified.render(records))
    assert run("generate", "--source", root / "old", "--out", out, "--jobs", 1).code == DONE
    assert "| phi | verified | 3 |" in (out / "COVERAGE.md").read_text()
    text = (out / "qeff/modeling_phi.py").read_text()

    if command == "bump":
        assert "VERIFIED.toml" in _bump(root, "--json").json["written"]
    else:
        moved = run("generate", "--source", root / "new", "--out", out, "--jobs", 1, "--json")
        assert "VERIFIED.toml" in moved.json["updated"]
    assert (out / "qeff/modeling_phi.py").read_text() == text
    kept = [] if meaning_changes else ["phi"]
    assert {target: sorted(mine) for target, mine in verified.read(out / verified.NAME).items()} == {
        "qeff": kept,
        "rmpad": kept,
    }
    page = (out / "COVERAGE.md").read_text()
    assert page.count("| phi | verified | 3 |") == 2 * len(kept)
    assert page.count("not verified since it or its upstream last changed") == (2 if kept else 4)
    assert run("check", "--source", root / "new", "--out", out, "--jobs", 1).code == DONE


def test_ctrl_c_while_verifying(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bump is written by then, and what is said of it is true."""

    def interrupted(*_: object, **__: object) -> Verified:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("unreachable")

    monkeypatch.setattr(verification, "check_installed", lambda version, out: None)
    monkeypatch.setattr(verification, "run_verification", interrupted)
    done = _bump(root, "--verify")
    assert done.code == INTERRUPTED and "2.0.0 is written, and not all of it is verified" in done.err
    assert "as it was" not in done.err
    assert (root / "project/pyproject.toml").read_text() != PIN
