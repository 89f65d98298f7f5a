"""Wrong input and bad luck: a message that names the place, the documented exit code, and the tree as it was."""

import ast
import contextlib
import errno
import io
import json
import os
import pydoc
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from codegen import __main__ as command
from codegen import presentation, store
from codegen.emit import manifest
from codegen.rules.base import Match, Site
from codegen.rules.qeff.cache_update import CacheUpdate
from codegen.rules.rmpad.packed_input import PackedInput
from codegen.source import installed
from codegen.targets import TARGETS
from codegen.upstream import UpstreamModule

ROOT = Path(__file__).resolve().parents[2]
HEADS = {"glm": "GlmForCausalLM", "llama": "LlamaForCausalLM", "phi": "PhiForCausalLM"}
HURT = "models/phi/modeling_phi.py"
PACKAGES = {"__init__.py", *(f"{target}/__init__.py" for target in TARGETS)}
TABLES = {"COVERAGE.md", "MANIFEST.toml"}
DONE, DIFFERENT, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


DIGEST = manifest.compiler_digest()  # once: it reads every file of the compiler


def _command(arguments: Sequence[object]) -> Ended:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["regraft", *map(str, arguments)])
        patch.setattr(manifest, "compiler_digest", lambda: DIGEST)
        with pytest.raises(SystemExit) as ended:
            command.main()
    assert "Traceback" not in err.getvalue()
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def _variants(*families: str) -> list[str]:
    """The generated file of each family for every target."""
    return sorted(f"{target}/modeling_{family}.py" for target in TARGETS for family in families)


PHI, LLAMA = _variants("phi"), _variants("llama")
WHOLE = {*PACKAGES, *TABLES, *_variants(*HEADS)}


class Bench:
    """A small release of three families in a folder, the tree generated from it, and the command."""

    def __init__(self, root: Path) -> None:
        self.source = root / "release"
        self.out = root / "generated"

    def run(self, *arguments: object) -> Ended:
        return _command(arguments)

    def generate(self, *arguments: object) -> Ended:
        return self.run("generate", *arguments, "--source", self.source, "--out", self.out, "--jobs", 1)

    def check(self, *arguments: object) -> Ended:
        return self.run("check", *arguments, "--source", self.source, "--out", self.out, "--jobs", 1)

    def tree(self) -> dict[str, tuple[bytes, int]]:
        """Every file with its content and time: untouched means both."""
        return {
            path.relative_to(self.out).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(self.out.rglob("*"))
            if path.is_file()
        }

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        before = self.tree()
        yield
        assert self.tree() == before

    def damage(self, how: Callable[[Path], None], path: str = HURT) -> None:
        how(self.source / path)


def _mini_release(root: Path) -> None:
    release = installed()
    for family in HEADS:
        path = f"models/{family}/modeling_{family}.py"
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(release.text(path), "utf-8")
    (root / "models" / "auto").mkdir()
    (root / "masking_utils.py").write_text(release.text("masking_utils.py"), "utf-8")
    (root / "__init__.py").write_text(f'__version__ = "{release.version}"\n')
    (root / "models/auto/configuration_auto.py").write_text("SPECIAL_MODEL_TYPE_TO_MODULE_NAME = OrderedDict([])\n")
    _write_mapping(root, HEADS)


def _write_mapping(root: Path, heads: dict[str, str]) -> None:
    text = f"MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict({list(heads.items())!r})\n"
    (root / "models/auto/modeling_auto.py").write_text(text)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release and its tree, made once."""
    root = tmp_path_factory.mktemp("pristine")
    _mini_release(root / "release")
    done = Bench(root).generate()
    assert done.code == DONE
    assert done.out == (
        f"transformers {installed().version}: qeff 3 families generated, 0 refused; rmpad 3 families generated,"
        " 0 refused;"
        f" {len(WHOLE)} files created, 0 updated, 0 removed, 0 unchanged\n"
    )
    assert set(Bench(root).tree()) == WHOLE
    return root


@pytest.fixture
def bench(pristine: Path, tmp_path: Path) -> Bench:
    shutil.copytree(pristine, tmp_path, dirs_exist_ok=True)
    return Bench(tmp_path)


def test_nothing_changed(bench: Bench) -> None:
    with bench.untouched():
        assert bench.check().code == DONE
        done = bench.generate()
        assert done.code == DONE
        assert f"0 files created, 0 updated, 0 removed, {len(WHOLE)} unchanged" in done.out


# ------------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", ["generate", "diff", "inspect"])
def test_unknown_family(bench: Bench, name: str) -> None:
    with bench.untouched():
        options = ["--out", bench.out] if name == "generate" else []
        done = bench.run(name, "lama", "--source", bench.source, *options)
    assert done.code == UNUSABLE
    assert "lama is not a type of upstream's causal-LM mapping; did you mean llama?" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["generate", "--jobs", "0"],
        ["generate", "--no-such-option"],
        ["diff"],
        ["diff", "llama", "--target", "none"],
        ["inspect", "llama", "--target", "none"],
        ["rules", "qeff/x"],
    ],
)
def test_unusable_options(bench: Bench, arguments: list[str]) -> None:
    assert bench.run(*arguments).code == UNUSABLE


@pytest.mark.parametrize("rule", ["qeff/cache-update", "rmpad/packed-input"])
def test_unknown_rule_is_told_its_neighbours(bench: Bench, rule: str) -> None:
    done = bench.run("rules", rule[:-1])
    assert done.code == UNUSABLE and f"did you mean {rule}" in done.err


def test_families_named_on_an_empty_tree_are_all_that_is_compiled(bench: Bench) -> None:
    shutil.rmtree(bench.out)
    assert bench.generate("llama").code == DONE
    assert set(bench.tree()) == {*PACKAGES, *TABLES, *LLAMA}
    assert bench.generate("glm").code == DONE
    assert set(bench.tree()) == {*PACKAGES, *TABLES, *_variants("llama", "glm")}
    assert bench.check().code == DIFFERENT, "a family is missing"


# -------------------------------------------------------------------------------------------------------------- source


def _not_there(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_suffix(".gone"))


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _cut_in_a_line(path: Path) -> None:
    text = path.read_text("utf-8")
    path.write_text(text[: text.index("self.dense(attn_output)") + len("self.dense(")], "utf-8")


def _cut_before_the_head(path: Path) -> None:
    text = path.read_text("utf-8")
    path.write_text(text[: text.index("class PhiForCausalLM")].rsplit("@", 1)[0], "utf-8")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _not_utf8(path: Path) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[40] += b"  # caf\xe9"
    path.write_bytes(b"\n".join(lines))


def _nul(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _syntax_error(path: Path) -> None:
    lines = path.read_text("utf-8").split("\n")
    lines[99] = "def def"
    path.write_text("\n".join(lines), "utf-8")


DAMAGES = [
    pytest.param(_not_there, HURT, "no such file", id="missing"),
    pytest.param(_a_folder, HURT, "Is a directory", id="unreadable"),
    pytest.param(_cut_in_a_line, f"{HURT}:", "syntax error", id="truncated in a line"),
    pytest.param(_cut_before_the_head, HURT, "no such class", id="truncated between classes"),
    pytest.param(_empty, HURT, "no such class", id="empty"),
    pytest.param(_not_utf8, f"{HURT}:41:", "0xe9", id="not UTF-8"),
    pytest.param(_nul, HURT, "null bytes", id="binary"),
    pytest.param(_syntax_error, f"{HURT}:100:", "syntax error", id="syntax error"),
]


@pytest.mark.parametrize(("how", "place", "found"), DAMAGES)
def test_a_damaged_file_refuses_its_family_and_leaves_the_tree(
    bench: Bench, how: Callable[[Path], None], place: str, found: str
) -> None:
    bench.damage(how)
    with bench.untouched():
        for done in (bench.generate(), bench.check()):
            assert done.code == DIFFERENT
            assert "phi" in done.err and place in done.err and found in done.err and "help:" in done.err
            assert "llama" not in done.err and "glm" not in done.err


def test_the_others_go_on_beside_a_damaged_file(bench: Bench) -> None:
    shutil.rmtree(bench.out)
    bench.damage(_syntax_error)
    for _ in range(2):  # the second time is told no less
        done = bench.generate()
        assert done.code == DIFFERENT and f"{HURT}:100:" in done.err
        assert "3 families" not in done.out
        assert set(bench.tree()) == WHOLE - set(PHI)
        assert "a syntax error" in (bench.out / "COVERAGE.md").read_text("utf-8")
    bench.damage(lambda path: path.write_text(installed().text(HURT), "utf-8"))
    assert bench.generate().code == DONE, "and once the file is whole, all is well"
    assert bench.check().code == DONE


def test_a_repaired_file_needs_nothing(bench: Bench) -> None:
    bench.damage(_syntax_error)
    with bench.untouched():
        assert bench.generate().code == DIFFERENT
        bench.damage(lambda path: path.write_text(installed().text(HURT), "utf-8"))
        assert bench.check().code == DONE


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["diff", "inspect"])
def test_questions_about_a_damaged_file(bench: Bench, name: str, target: str) -> None:
    bench.damage(_syntax_error)
    done = bench.run(name, "phi", "--source", bench.source, "--target", target)
    assert done.code in (DIFFERENT, UNUSABLE) and f"{HURT}:100:" in done.err


@pytest.mark.parametrize(
    "path", ["models/auto/modeling_auto.py", "models/auto/configuration_auto.py", "masking_utils.py"]
)
@pytest.mark.parametrize("content", [b"def (", b"x = 1  # caf\xe9\n", b"\0"])
def test_a_damaged_mapping_or_mask_builder_stops_all(bench: Bench, path: str, content: bytes) -> None:
    (bench.source / path).write_bytes(content)
    with bench.untouched():
        done = bench.generate()
    assert done.code == UNUSABLE and path in done.err


def test_a_type_without_any_file(bench: Bench) -> None:
    _write_mapping(bench.source, {**HEADS, "new_type": "NewTypeForCausalLM"})
    with bench.untouched():
        done = bench.generate()
    assert done.code == UNUSABLE and "no modeling file" in done.err and "NewTypeForCausalLM" in done.err


def _wheel_of(bench: Bench, with_metadata: str = "Version: 5.5.4\n") -> Path:
    path = bench.out.parent / "transformers.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(bench.source.rglob("*.py")):
            archive.write(file, f"transformers/{file.relative_to(bench.source)}")
        if with_metadata:
            archive.writestr("transformers-5.5.4.dist-info/METADATA", f"Name: transformers\n{with_metadata}")
    return path


def test_a_wheel_says_the_same(bench: Bench) -> None:
    bench.source = _wheel_of(bench)
    with bench.untouched():
        assert bench.check().code == DONE


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda bench: bench.out.parent / "nowhere.whl", "does not exist"),
        (lambda bench: _file(bench.out.parent / "text.whl", b"no archive"), "is not a readable wheel"),
        (lambda bench: _file(bench.out.parent / "short.whl", _wheel_of(bench).read_bytes()[:9000]), "not a readable"),
        (lambda bench: _wheel_of(bench, ""), "no METADATA inside"),
        (lambda bench: _wheel_of(bench, "Summary: none\n"), "METADATA states no version"),
        (lambda bench: _folder(bench.out.parent / "empty"), "holds no transformers source"),
    ],
    ids=["missing", "no zip", "truncated", "no metadata", "no version", "empty folder"],
)
def test_unusable_sources(bench: Bench, make: Callable[[Bench], Path], said: str) -> None:
    bench.source = make(bench)
    with bench.untouched():
        done = bench.generate()
    assert done.code == UNUSABLE and said in " ".join(done.err.split())


def test_a_damaged_member_of_a_wheel_refuses_its_family(bench: Bench) -> None:
    wheel = _wheel_of(bench)
    content = wheel.read_bytes()
    at = content.index(b"class PhiForCausalLM")
    bench.source = _file(wheel, content[:at] + b"CLASS" + content[at + 5 :])
    with bench.untouched():
        done = bench.generate()
    assert done.code == DIFFERENT and HURT in done.err and "CRC" in done.err


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


# ------------------------------------------------------------------------------------------------------------- refusal


def _in_an_unknown_shape(path: Path) -> None:
    text = path.read_text("utf-8")
    path.write_text(text.replace("ALL_ATTENTION_FUNCTIONS.get_interface(", "ALL_ATTENTION_FUNCTIONS.choose("), "utf-8")


def test_a_new_refusal(bench: Bench) -> None:
    bench.damage(_in_an_unknown_shape)
    checked = bench.check()
    assert checked.code == DIFFERENT and "run: regraft generate" in checked.out
    assert all(f"orphaned: {path}" in checked.err for path in PHI)
    done = bench.generate()
    assert done.code == DIFFERENT
    assert "newly refused: phi: " in done.err and f"{HURT}:" in done.err
    assert all(f"[{target}/attention-dispatch]" in done.err for target in TARGETS)
    assert set(bench.tree()) == WHOLE - set(PHI)
    again = bench.generate()
    assert again.code == DONE and not again.err, "a refusal that is recorded is not new"


def test_a_new_refusal_as_json(bench: Bench) -> None:
    bench.damage(_in_an_unknown_shape)
    done = bench.generate("--json")
    report = json.loads(done.out)
    assert done.code == DIFFERENT and not done.err
    assert [(r["family"], r["file"]) for r in report["newly_refused"]] == [("phi", HURT)] * len(TARGETS)
    assert {r["rule"] for r in report["newly_refused"]} == {f"{target}/attention-dispatch" for target in TARGETS}
    assert report["removed"] == PHI and report["generated"] == {"qeff": 2, "rmpad": 2}


@pytest.mark.parametrize(
    ("target", "text", "new"),
    [
        ("qeff", "attn_weights + attention_mask", "attn_weights - attention_mask"),
        ("rmpad", "self.loss_function(", "self.loss_of("),
    ],
)
def test_a_refusal_of_one_target_leaves_the_others(bench: Bench, target: str, text: str, new: str) -> None:
    bench.damage(lambda path: path.write_text(path.read_text("utf-8").replace(text, new), "utf-8"))
    done = bench.generate("--json")
    report = json.loads(done.out)
    assert done.code == DIFFERENT and report["removed"] == [f"{target}/modeling_phi.py"]
    assert {(r["family"], r["rule"].split("/")[0]) for r in report["newly_refused"]} == {("phi", target)}
    assert set(bench.tree()) == WHOLE - {f"{target}/modeling_phi.py"}
    assert bench.check().code == DONE


@pytest.mark.parametrize(("target", "rule"), [("qeff", CacheUpdate), ("rmpad", PackedInput)])
def test_an_error_of_the_compiler_refuses_one_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, target: str, rule: type[CacheUpdate] | type[PackedInput]
) -> None:
    match: Callable[[object, Site], Match] = rule.match

    def fails(self: object, site: Site) -> Match:
        if site.module.path == HURT:
            raise AssertionError("unforeseen")
        return match(self, site)

    monkeypatch.setattr(rule, "match", fails)
    shutil.rmtree(bench.out)
    assert bench.generate().code == DONE, "there was nothing before: no refusal is new"
    assert set(bench.tree()) == WHOLE - {f"{target}/modeling_phi.py"}
    page = (bench.out / "COVERAGE.md").read_text("utf-8")
    assert "AssertionError: unforeseen" in page


def test_an_error_before_any_rule_refuses_one_file_too(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    index = UpstreamModule._index

    def fails(self: UpstreamModule, body: Sequence[ast.stmt], end: int) -> None:
        if self.path == HURT:
            raise RecursionError("unforeseen")
        index(self, body, end)

    monkeypatch.setattr(UpstreamModule, "_index", fails)
    shutil.rmtree(bench.out)
    assert bench.generate().code == DONE
    assert set(bench.tree()) == WHOLE - set(PHI)
    assert "RecursionError: unforeseen" in (bench.out / "COVERAGE.md").read_text("utf-8")


# ---------------------------------------------------------------------------------------------------------------- tree


@pytest.mark.parametrize("path", sorted({*PHI, *PACKAGES}))
def test_a_hand_edited_file(bench: Bench, path: str) -> None:
    whole = bench.out / path
    text = whole.read_text("utf-8")
    whole.write_text(text + "# mine\n", "utf-8")
    with bench.untouched():
        done = bench.generate()
        assert done.code == UNUSABLE and path in done.err and "--discard-edits" in done.err
        checked = bench.check()
        assert checked.code == DIFFERENT and f"hand-edited: {path}" in checked.err and "-# mine" in checked.out
        assert "run: regraft generate" in checked.out and "--discard-edits" in checked.out
        reported = bench.check("--json")
        assert reported.code == DIFFERENT and json.loads(reported.out)[path] == "hand-edited"
    assert bench.generate("--discard-edits").code == DONE
    assert whole.read_text("utf-8") == text


@pytest.mark.parametrize("path", PHI)
def test_an_edit_is_not_lost_when_its_family_goes(bench: Bench, path: str) -> None:
    _write_mapping(bench.source, {name: head for name, head in HEADS.items() if name != "phi"})
    (bench.out / path).write_text("# mine\n")
    with bench.untouched():
        assert bench.generate().code == UNUSABLE


def test_what_is_not_fresh_is_counted_and_mended_by_the_command_that_is_named(bench: Bench) -> None:
    """The command has the options that ``check`` had: without its source it would compile another release."""
    (bench.out / PHI[0]).write_text("# mine\n")
    (bench.out / PHI[1]).unlink()
    checked = bench.check()
    assert f"1 missing, 1 hand-edited\nrun: regraft generate --out {bench.out} --source {bench.source}\n" in checked.out
    assert checked.out.count(" fresh, ") == 1 and f"{len(WHOLE) - 2} fresh, 1 missing" in checked.out


def test_a_tree_of_another_release_is_told_apart(bench: Bench) -> None:
    """Each file is named all the same, but ``generate`` would move the tree away from the project's pin."""
    version = installed().version
    bench.damage(lambda path: path.write_text('__version__ = "9.8.7"\n'), "__init__.py")
    checked = bench.check()
    assert checked.code == DIFFERENT and "stale: MANIFEST.toml" in checked.err
    assert f"the tree is of transformers {version}, and was compared with 9.8.7" in checked.out
    assert "run: regraft bump 9.8.7" in checked.out and "regraft generate" not in checked.out.splitlines()[-1]


def test_check_shows_differences_on_a_terminal_without_a_pager(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pager a file, each waiting for a key, would stop a hook."""
    monkeypatch.setattr(presentation, "OUT", Console(force_terminal=True, highlight=False, soft_wrap=True, width=40))
    monkeypatch.setattr(pydoc, "pager", lambda text: pytest.fail("a pager was started"))
    (bench.out / PHI[0]).write_text("# mine, in a line that is a good deal longer than a narrow terminal is wide\n")
    checked = bench.check()
    assert checked.code == DIFFERENT
    gone = "\x1b[31m-# mine, in a line that is a good deal longer than a narrow terminal is wide\x1b[0m"
    assert gone in checked.out.splitlines()


def test_missing_stale_and_orphaned_files(bench: Bench) -> None:
    whole = bench.tree()
    for path in PHI:
        (bench.out / path).unlink()
    checked = bench.check()
    assert checked.code == DIFFERENT and all(f"missing: {path}" in checked.err for path in PHI)
    assert f"run: regraft generate --out {bench.out}" in checked.out and "--discard-edits" not in checked.out
    assert _states(bench, PHI) == {"missing"} and _states(bench, WHOLE - set(PHI)) == {"fresh"}
    assert bench.generate().code == DONE
    assert {path: content for path, (content, _) in bench.tree().items()} == {p: c for p, (c, _) in whole.items()}

    bench.damage(_rename_a_variable)
    checked = bench.check()
    assert checked.code == DIFFERENT and all(f"stale: {path}" in checked.err for path in PHI)
    assert "+" in checked.out and "run: regraft generate" in checked.out
    assert _states(bench, PHI) == {"stale"}

    _write_mapping(bench.source, {name: head for name, head in HEADS.items() if name != "phi"})
    checked = bench.check()
    assert checked.code == DIFFERENT and all(f"orphaned: {path}" in checked.err for path in PHI)
    assert _states(bench, PHI) == {"orphaned"}
    assert bench.generate().code == DONE
    assert set(bench.tree()) == WHOLE - set(PHI)
    assert set(json.loads(bench.check("--json").out).values()) == {"fresh"}


def _states(bench: Bench, paths: Iterable[str]) -> set[str]:
    """What ``check --json`` says of some files."""
    states = json.loads(bench.check("--json").out)
    return {states[path] for path in paths}


def _rename_a_variable(path: Path) -> None:
    path.write_text(path.read_text("utf-8").replace("attn_output", "attention_result"), "utf-8")


def test_other_files_of_the_folder_are_not_ours(bench: Bench) -> None:
    for target in TARGETS:
        (bench.out / target / "notes.txt").write_text("mine")
    with bench.untouched():
        assert bench.check().code == DONE
        assert bench.generate().code == DONE


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda text: text[: len(text) // 2], id="truncated"),
        pytest.param(lambda text: "\udc80" + text, id="binary"),
        pytest.param(lambda text: "answer = 42\n", id="something else"),
        *(
            pytest.param(lambda text, t=t: text.replace(f"[[targets.{t}]]", f"[targets.{t}]", 1), id=f"{t}'s shape")
            for t in TARGETS
        ),
        pytest.param(lambda text: text.replace("families =", "family =", 1), id="a missing field"),
    ],
)
def test_a_damaged_manifest(bench: Bench, content: Callable[[str], str]) -> None:
    path = bench.out / "MANIFEST.toml"
    path.write_bytes(content(path.read_text("utf-8")).encode("utf-8", "surrogateescape"))
    with bench.untouched():
        for name in ("generate", "check"):
            done = bench.run(name, "--source", bench.source, "--out", bench.out)
            assert done.code == UNUSABLE and "MANIFEST.toml" in done.err and "delete it" in done.err
        assert bench.run("coverage", "--out", bench.out).code == UNUSABLE


def test_a_deleted_manifest_is_written_again(bench: Bench) -> None:
    whole = bench.tree()
    (bench.out / "MANIFEST.toml").unlink()
    assert bench.generate().code == DONE
    assert {path: content for path, (content, _) in bench.tree().items()} == {p: c for p, (c, _) in whole.items()}


def test_the_tree_is_a_file(bench: Bench) -> None:
    shutil.rmtree(bench.out)
    bench.out.write_text("not a folder")
    done = bench.generate()
    assert done.code == UNUSABLE and str(bench.out) in done.err
    assert bench.out.read_text() == "not a folder"


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the disk is read-only")]
)
def test_a_full_or_read_only_disk(bench: Bench, monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    bench.damage(_rename_a_variable)
    write, count = store._write, 0

    def fails(path: Path, content: bytes, mode: int | None) -> None:
        nonlocal count
        count += 1
        if count == 2:
            write(path, content[:100], mode)
            raise OSError(number, os.strerror(number), str(path))
        write(path, content, mode)

    monkeypatch.setattr(store, "_write", fails)
    with bench.untouched():
        done = bench.generate()
    assert done.code == UNUSABLE and said in done.err and "the tree is as it was" in done.err
    assert not (bench.out / store.STAGING).exists()


# -------------------------------------------------------------------------------------------------------- interruptions


def _children(process: int) -> set[int]:
    with contextlib.suppress(OSError):
        return {int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()}
    return set()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc to see the worker processes")
def test_ctrl_c_in_the_middle(bench: Bench, tmp_path: Path) -> None:
    """The whole process group gets the signal, as from a terminal, while two workers compile all of upstream."""
    process = subprocess.Popen(
        [sys.executable, "-m", "codegen", "generate", "--out", bench.out, "--jobs", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with bench.untouched():
        deadline = time.monotonic() + 120
        while not (workers := _children(process.pid)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert workers, "it compiles in processes of its own"
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED, err
    assert "interrupted" in err and "as it was" in err and "Traceback" not in err + out
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers), "no worker is left behind"


def test_ctrl_c_while_writing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.damage(_rename_a_variable)
    write = store._write

    def interrupted(path: Path, content: bytes, mode: int | None) -> None:
        signal.raise_signal(signal.SIGINT)
        write(path, content, mode)

    monkeypatch.setattr(store, "_write", interrupted)
    with bench.untouched():
        done = bench.generate()
    assert done.code == INTERRUPTED and "as it was" in done.err
