"""The committed tree is what the compiler writes, and its files say what they must and nothing that changes."""

import ast
import subprocess
import sys
import tokenize
import tomllib
from io import StringIO
from pathlib import Path

import black
import pytest

from codegen.discovery import discover
from codegen.emit.layout import MODE
from codegen.source import installed
from codegen.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
GENERATED = ROOT / "generated"
VARIANTS = sorted(GENERATED.glob("*/modeling_*.py"))
PACKAGES = [GENERATED / "__init__.py", *(GENERATED / target / "__init__.py" for target in TARGETS)]


def _name(path: Path) -> str:
    return path.relative_to(GENERATED).as_posix()


def test_every_target_has_variants() -> None:
    assert {path.parent.name for path in VARIANTS} == set(TARGETS)
    assert sorted(GENERATED.rglob("*.py")) == sorted([*PACKAGES, *VARIANTS]), "and there is no other code"


def test_the_tree_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "codegen", "check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]


def test_every_type_of_the_mapping_is_covered() -> None:
    manifest = tomllib.loads((GENERATED / "MANIFEST.toml").read_text("utf-8"))
    page = (GENERATED / "COVERAGE.md").read_text("utf-8")
    assert set(manifest["targets"]) == set(TARGETS)
    for rows in manifest["targets"].values():
        listed = [f["type"] for row in rows for f in (*row["families"], *row.get("refused", ()))]
        assert sorted(listed) == sorted(f.model_type for f in discover(installed()))
        for row in rows:
            for family in row.get("refused", ()):
                assert all(d["expected"] and d["found"] and d["help"] for d in family["diagnostics"])
    for family in discover(installed()):
        assert f"| {family.model_type} | " in page


def test_the_manifest_names_the_files_that_are_there() -> None:
    manifest = tomllib.loads((GENERATED / "MANIFEST.toml").read_text("utf-8"))
    named = {
        GENERATED / target / row["upstream"].rsplit("/", 1)[-1]
        for target, rows in manifest["targets"].items()
        for row in rows
        if "output" in row
    }
    assert named == set(VARIANTS)


def _comments(text: str) -> list[str]:
    """The comment lines at the top of a file."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        found.append(line)
    return found


@pytest.mark.parametrize("path", VARIANTS, ids=_name)
def test_a_variant_says_what_it_is(path: Path) -> None:
    text = path.read_text("utf-8")
    tree = ast.parse(text)
    header = _comments(text)
    source = next(word for word in header[0].split() if word.startswith("models/")).rstrip(".")
    assert "Do not edit" in header[0] and source.rsplit("/", 1)[-1] == path.name
    assert header[1].startswith("# Regenerate with: regraft generate ")
    assert ast.get_docstring(tree)
    # upstream's notice, word for word
    upstream = _comments(installed().text(source))
    start = next((i for i, line in enumerate(upstream) if "copyright" in line.lower()), None)
    if start is None:
        assert any("Apache License" in line for line in header)
    else:
        notice = upstream[start:]
        assert notice in [header[at : at + len(notice)] for at in range(len(header))]


@pytest.mark.parametrize("path", VARIANTS, ids=_name)
def test_a_variant_subclasses_upstream_and_documents_its_rules(path: Path) -> None:
    target = TARGETS[path.parent.name]
    tree = ast.parse(path.read_text("utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes
    for node in classes:
        assert node.name.startswith(target.prefix)
        assert node.name.removeprefix(target.prefix) in {ast.unparse(base) for base in node.bases}
        doc = ast.get_docstring(node) or ""
        changed = {m.name for m in node.body if isinstance(m, ast.FunctionDef)} - {"get_submodules_for_export"}
        listed = [line.split()[1].rstrip(":") for line in doc.splitlines() if line.startswith("* ")]
        assert set(listed) <= {step.rule.id for step in target.steps}
        assert bool(listed) == bool(changed), "rules are listed where, and only where, something changed"


@pytest.mark.parametrize("path", VARIANTS, ids=_name)
def test_nothing_in_a_variant_changes_by_itself(path: Path) -> None:
    """No version, no date, no place on a disk: those would change every file at every release or checkout."""
    text = path.read_text("utf-8")
    assert installed().version not in text
    for word in (str(ROOT), "site-packages", "/home/", "/tmp/", "/root/"):
        assert word not in text
    assert not [line for line in _comments(text) if _has_date(line)]
    assert not [line for line in _own_comments(text) if _has_date(line)]


def _own_comments(text: str) -> list[str]:
    tokens = tokenize.generate_tokens(StringIO(text).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def _has_date(line: str) -> bool:
    """``2026-01-31``; a year alone is a copyright's."""
    for word in line.replace(",", " ").split():
        parts = word.split("-")
        if len(parts) == 3 and all(part.isdigit() for part in parts) and len(parts[0]) == 4:
            return True
    return False


@pytest.mark.parametrize("name", ["MANIFEST.toml", "COVERAGE.md", *map(_name, PACKAGES)])
def test_tables_hold_no_place_and_no_date(name: str) -> None:
    text = (GENERATED / name).read_text("utf-8")
    for word in (str(ROOT), "site-packages", "/home/", "/tmp/", "/root/"):
        assert word not in text
    assert not [line for line in text.splitlines() if _has_date(line)]


@pytest.mark.parametrize("path", [*PACKAGES, *VARIANTS], ids=_name)
def test_a_file_is_what_black_makes_of_it(path: Path) -> None:
    """The compiler formats a file's parts one by one and puts them together."""
    text = path.read_text("utf-8")
    assert black.format_str(text, mode=MODE) == text
