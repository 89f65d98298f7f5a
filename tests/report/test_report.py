"""The report as a file: what is compared, what it says, and what it says when it cannot."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from bench import modeling, run
from small_project import HOSTILE, Project, data_of, generate, git, make

from codegen.comparison.rows import compared
from codegen.comparison.tokens import piece
from codegen.emit import manifest
from codegen.report.encoding import Encoder
from codegen.report.gather import _since
from codegen.report.page import island, render
from codegen.targets import TARGETS

DONE, DIFFERENT, UNUSABLE = 0, 1, 2


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make(tmp_path_factory.mktemp("report"))


@pytest.fixture
def project(pristine: Project, tmp_path: Path) -> Project:
    """A copy that a test may change."""
    shutil.copytree(pristine.root.parent, tmp_path, dirs_exist_ok=True)
    return Project(tmp_path / "project", tmp_path / "old", tmp_path / "new")


@pytest.fixture(scope="module")
def against(pristine: Project, tmp_path_factory: pytest.TempPathFactory) -> Any:
    page = tmp_path_factory.mktemp("page") / "report.html"
    done = run("report", "--against", "HEAD", "--base", pristine.old, *pristine.options(page))
    assert done.code == DONE, done.err
    assert f"{page}: 3 families" in done.out
    return data_of(page)


def _family(data: Any, name: str) -> Any:
    return next(family for family in data["families"] if family["name"] == name)


def _text(data: Any, blocks: list[list[Any]], right: bool) -> list[str]:
    lines = []
    for block in blocks:
        if block[0] == 0:
            lines += [data["lines"][number] for number in block[3:]]
        elif block[3 if right else 1]:
            lines.append(data["lines"][block[4 if right else 2]])
    return lines


def test_what_became_of_each_family(against: Any) -> None:
    found = {
        family["name"]: (family["drift"], *(family["targets"][t]["outcome"] for t in TARGETS))
        for family in against["families"]
    }
    assert found == {
        "glm": ("semantic", "newly refused", "newly refused"),
        "llama": ("semantic", "changed", "changed"),
        "phi": ("spelling only", "unchanged", "unchanged"),
    }
    assert against["before"]["revision"] == "HEAD" and len(against["before"]["commit"]) == 40
    assert (against["before"]["release"], against["release"]) == ("1.0.0", "2.0.0")


def test_the_classes_of_drift_are_those_of_the_drift_command(against: Any, pristine: Project) -> None:
    told = run("drift", pristine.old, pristine.new, "--out", pristine.tree, "--jobs", 1, "--json").json
    for family in told["families"]:
        mine = _family(against, family["family"])
        assert mine["drift"] == family["upstream"]
        assert mine["imported"]
        for which in ("methods", "imported"):
            assert {against["lines"][name]: drift for name, drift in mine[which]} == family[which]


def test_upstreams_own_changes_are_shown(against: Any) -> None:
    changes = against["upstream"][modeling("llama")]
    assert set(changes) == {"LlamaAttention.forward"}
    ((hunk, *_),) = (changes["LlamaAttention.forward"],)
    assert f"        {HOSTILE}" in _text(against, hunk, right=True)
    assert f"        {HOSTILE}" not in _text(against, hunk, right=False)
    assert list(against["upstream"][modeling("phi")]) == ["PhiAttention.forward"]


def test_a_refusal_is_shown_where_it_is(against: Any, pristine: Project) -> None:
    upstream = (pristine.new / modeling("glm")).read_text("utf-8").split("\n")
    remembered = manifest.read(pristine.tree / manifest.NAME)
    assert remembered is not None
    for target in TARGETS:
        shown = _family(against, "glm")["targets"][target]
        (_, known), *_ = remembered.entries[target, modeling("glm")].compiled.refused
        assert shown["state"] == "refused" and shown["file"] is None and shown["before"]["state"] == "generated"
        for one, diagnostic in zip(shown["diagnostics"], known, strict=True):
            assert (one["place"], one["rule"]) == (str(diagnostic.span), diagnostic.rule)
            assert (one["expected"], one["found"], one["help"]) == (
                diagnostic.expected, diagnostic.found, diagnostic.help,
            )  # fmt: skip
            at = one["line"] - one["first"]
            assert [against["lines"][n] for n in one["lines"]][at] == upstream[diagnostic.span.line - 1]


def test_a_variant_is_shown_against_what_it_was(against: Any, pristine: Project) -> None:
    for target in TARGETS:
        file = against["files"][_family(against, "llama")["targets"][target]["file"]]
        path = f"generated/{target}/modeling_llama.py"
        old = git(pristine, "show", f"HEAD:{path}").split("\n")
        new = (pristine.root / path).read_text("utf-8").split("\n")
        assert file["since"] and file["sinceChanged"][0] >= 1
        for hunk in file["since"]:
            for texts, right in ((old, False), (new, True)):
                shown = _text(against, hunk["rows"], right)
                assert any(texts[k : k + len(shown)] == shown for k in range(len(texts)))
        assert any("scaling=self.scaling," in line for h in file["since"] for line in _text(against, h["rows"], False))
        assert not _family(against, "phi")["targets"][target]["unexplained"]
        assert not against["files"][_family(against, "phi")["targets"][target]["file"]]["since"]


def test_a_hunk_that_begins_in_a_docstring_says_so() -> None:
    """Else the page would take the docstring's end for the beginning of a string."""
    was = 'class A:\n    """One.\n\n    two\n    three\n    four\n    """\n\n    x = 1\n    y = 2\n    z = 3\n'
    for now, quoted in (
        (was.replace("x = 1", "x = 2"), [True, True]),
        (was.replace("z = 3", "z = 4"), [False, False]),
        (was.replace("One.", "Two."), [False, False]),
        (was.replace('    """\n\n    x', '    """\n\n    """More."""\n    x'), [True, True]),
    ):
        assert _since(Encoder(), compared(piece(was), piece(now)), was, now)[0]["quoted"] == quoted, now


def test_without_a_revision_it_shows_what_is(pristine: Project, tmp_path: Path) -> None:
    page = tmp_path / "now.html"
    done = run("report", *pristine.options(page), "--json")
    assert done.code == DONE
    assert done.json == {
        "path": str(page), "size": page.stat().st_size, "families": 3, "release": "2.0.0", "before": "", "edited": [],
    }  # fmt: skip
    data = data_of(page)
    assert data["before"] is None and not data["upstream"]
    assert not any("drift" in family for family in data["families"])


def test_a_compiler_that_changed_within_one_release(project: Project, tmp_path: Path) -> None:
    """Upstream is compared with itself, without its release being fetched twice."""
    page = tmp_path / "report.html"
    git(project, "commit", "--quiet", "--all", "--message", "for 2.0.0")
    assert run("report", "--against", "HEAD", *project.options(page)).code == DONE
    data = data_of(page)
    assert data["before"]["release"] == data["release"] == "2.0.0" and not data["upstream"]
    for family in data["families"]:
        assert all(drift == "unchanged" for _, drift in family["methods"])
        assert {family["targets"][t]["outcome"] for t in TARGETS} <= {"unchanged", "refused"}


def test_families_that_come_and_go(project: Project, tmp_path: Path) -> None:
    mapping = project.new / "models/auto/modeling_auto.py"
    text = mapping.read_text("utf-8")
    mapping.write_text(text.replace("('phi', 'PhiForCausalLM')", "('other', 'PhiForCausalLM')"))
    (project.new / "models/other").mkdir()
    shutil.move(project.new / modeling("phi"), project.new / modeling("other"))
    generate(project, project.new)
    page = tmp_path / "report.html"
    done = run("report", "--against", "HEAD", "--base", project.old, *project.options(page))
    assert done.code == DONE, done.err
    data = data_of(page)
    for name, became in (("phi", "removed"), ("other", "new")):
        family = _family(data, name)
        assert family["drift"] == became and not family["methods"]
        for target in TARGETS:
            shown = family["targets"][target]
            assert shown["outcome"] == became and (shown["file"] is None) == (became == "removed")
            assert (shown["state"], shown["before"]["state"]) == (
                ("none", "generated") if became == "removed" else ("generated", "none")
            )


def test_the_same_input_gives_the_same_bytes(pristine: Project, tmp_path: Path) -> None:
    digests = set()
    for number, jobs in enumerate((1, 2)):
        page = tmp_path / f"{number}.html"
        options = [*pristine.options(page)[:-1], jobs]
        assert run("report", "--against", "HEAD", "--base", pristine.old, *options).code == DONE
        digests.add(hashlib.sha256(page.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_page_is_one_file_that_asks_for_nothing(pristine: Project, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    run("report", *pristine.options(page))
    text = page.read_text("utf-8")
    assert text.lower().count("<script") == text.lower().count("</script>") == 2, "the data and the one that draws it"
    assert "default-src 'none'" in text and "unsafe" not in text.split("<style>")[0]
    assert str(pristine.root.parent) not in text, "nothing of this machine"
    assert not [word for word in ("http://", "https://", "@import", "url(") if word in text.split('id="data"')[0]]


def test_data_cannot_end_its_element() -> None:
    text = island({"a": "</script><!-- <script> & \u2028\u2029 é \ud7ff"})
    assert not set("<>&\u2028\u2029") & set(text) and "é" in text


def test_names_are_escaped_outside_of_the_data() -> None:
    before = {"release": "<b>1</b>", "revision": "x", "commit": "y"}
    assert "<title>regraft report: transformers &lt;b&gt;1&lt;/b&gt; → 2</title>" in render(
        {"release": "2", "before": before}
    )


def test_an_edited_file_is_marked(project: Project, tmp_path: Path) -> None:
    file = project.tree / "qeff/modeling_phi.py"
    text = file.read_text("utf-8")
    head, tail = text.split("        input_shape = hidden_states.shape[:-1]\n", 1)
    edit = "        hidden_states = hidden_states * 2\n        input_shape = hidden_states.shape[:-1]\n"
    file.write_text(head + edit + tail)
    page = tmp_path / "report.html"
    done = run("report", *project.options(page))
    assert done.code == DIFFERENT and "edited by hand: qeff/modeling_phi.py" in done.err
    data = data_of(page)
    assert data["edited"] == ["qeff/modeling_phi.py"]
    (shown,) = (f for f in data["files"] if f["name"] == "qeff/modeling_phi.py")
    unexplained = [
        data["lines"][block[4]]
        for cls in shown["classes"]
        for method in cls["methods"]
        for block in method["rows"]
        if block[0] == 2 and "unexplained" in data["sets"][block[5]]
    ]
    assert shown["edited"] and unexplained == ["        hidden_states = hidden_states * 2"]


def _refused(project: Project, page: Path, *options: object) -> str:
    """The message of a run that writes nothing."""
    done = run("report", *options)
    assert done.code == UNUSABLE and not done.out.strip()
    assert not page.exists() and not list(page.parent.glob(f".{page.name}*"))
    return " ".join(done.err.split())


def test_unusable_revisions(project: Project, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    options = project.options(page)
    assert "nothing is not a revision of the repository" in _refused(project, page, "--against", "nothing", *options)
    assert "--help is not a revision" in _refused(project, page, "--against=--help", *options)
    git(project, "checkout", "--quiet", "--orphan", "empty")
    git(project, "rm", "--quiet", "-r", "-f", "--cached", ".")
    git(project, "commit", "--quiet", "--allow-empty", "--message", "nothing")
    assert "HEAD holds nothing under generated" in _refused(project, page, "--against", "HEAD", *options)
    (project.tree / manifest.NAME).rename(tmp_path / "kept")
    git(project, "add", ".")
    git(project, "commit", "--quiet", "--message", "no manifest")
    (tmp_path / "kept").rename(project.tree / manifest.NAME)
    assert f"HEAD:{manifest.NAME} does not exist" in _refused(project, page, "--against", "HEAD", *options)


def test_no_repository(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project.root / ".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    page = tmp_path / "report.html"
    said = _refused(project, page, "--against", "HEAD", *project.options(page))
    assert "is in no git repository that can be read" in said
    monkeypatch.setenv("PATH", "")
    assert "git cannot be started" in _refused(project, page, "--against", "HEAD", *project.options(page))


def test_unusable_releases(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "report.html"
    tree = ("--tree", project.tree, "--out", page, "--jobs", 1)
    said = _refused(project, page, "--source", project.old, *tree)
    assert "the tree is of transformers 2.0.0, and --source is of 1.0.0" in said
    said = _refused(project, page, "--against", "HEAD", "--base", project.new, *project.options(page))
    assert "HEAD is of transformers 1.0.0, and --base is of 2.0.0" in said
    monkeypatch.setattr("codegen.acquire.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr("codegen.acquire._pip_download", _offline)
    assert "the tree is of transformers 2.0.0: offline (--source)" in _refused(project, page, *tree)
    said = _refused(project, page, "--against", "HEAD", *project.options(page))
    assert "HEAD is of transformers 1.0.0: offline (--base)" in said
    assert "pass --against too" in _refused(project, page, "--base", project.old, *project.options(page))


def _offline(*_: object) -> None:
    from codegen.diagnostics import InputError

    raise InputError("offline")


def test_unusable_trees(project: Project, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    options = project.options(page)
    file = project.tree / "rmpad/modeling_llama.py"
    text = file.read_text("utf-8")
    file.write_text(text + "def\n")
    assert "rmpad/modeling_llama.py is not Python" in _refused(project, page, *options)
    file.write_bytes(b"\xff")
    assert "rmpad/modeling_llama.py is not UTF-8 text" in _refused(project, page, *options)
    file.unlink()
    assert "rmpad/modeling_llama.py is missing; regraft generate writes it" in _refused(project, page, *options)
    file.write_text(text)
    shutil.copy(project.old / modeling("llama"), project.new / modeling("glm"))  # no longer what the manifest says
    (project.tree / manifest.NAME).write_text("damaged")
    assert "MANIFEST.toml is damaged" in _refused(project, page, *options)
    (project.tree / manifest.NAME).unlink()
    assert "MANIFEST.toml does not exist; regraft generate writes it" in _refused(project, page, *options)


def test_a_variant_that_this_compiler_does_not_derive(project: Project, tmp_path: Path) -> None:
    text = (project.new / modeling("phi")).read_text("utf-8")
    (project.new / modeling("phi")).write_text(text.replace("past_key_values.update(", "past_key_values.put("))
    page = tmp_path / "report.html"
    assert "modeling_phi.py is stale: " in _refused(project, page, *project.options(page))


def test_where_the_page_cannot_be_written(project: Project, tmp_path: Path) -> None:
    page = tmp_path / "nowhere" / "report.html"
    done = run("report", *project.options(page))
    assert done.code == UNUSABLE and "is not a folder" in done.err
    done = run("report", *project.options(tmp_path))
    assert done.code == UNUSABLE and "is a folder" in done.err


def test_a_page_is_replaced_whole(project: Project, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    assert run("report", *project.options(page)).code == DONE
    first = page.read_bytes()
    generate(project, project.old)
    assert run("report", "--source", project.old, "--tree", project.tree, "--out", page, "--jobs", 1).code == DONE
    assert page.read_bytes() != first and data_of(page)["release"] == "1.0.0"
    assert sorted(path.name for path in tmp_path.glob("*report*")) == ["report.html"]
