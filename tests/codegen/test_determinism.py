"""Same upstream text, same bytes: whatever the hash seed, the order, the number of processes, or where it is read."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from codegen.discovery import discover
from codegen.source import Release, installed
from codegen.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
# all general shapes: rotary, learned positions, fused projections, experts, a window per layer, and one refusal
FAMILIES = ("llama", "gpt2", "phi3", "mixtral", "gemma2", "mamba")

# Nothing heavy can be imported, as on a machine that has neither installed.
WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from codegen.__main__ import main
main()
"""


def _needed(release: Release) -> list[str]:
    """The files that compiling reads: the mapping, the modeling file of every type, and what these import."""
    spec = find_spec("transformers")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    shared = {path.relative_to(root).as_posix() for path in root.rglob("*.py")}
    paths = {family.path for family in discover(release)} | {p for p in shared if not p.startswith("models/")}
    return sorted({*paths, "models/auto/modeling_auto.py", "models/auto/configuration_auto.py"} - {"__init__.py"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Upstream's source as a checkout has it, under ``src/``."""
    root = tmp_path_factory.mktemp("checkout")
    release = installed()
    for path in _needed(release):
        place = root / "src" / "transformers" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(release.text(path), "utf-8", newline="")
    (root / "src" / "transformers" / "__init__.py").write_text(f'__version__ = "{release.version}"\n')
    return root


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = installed()
    path = tmp_path_factory.mktemp("wheels") / f"transformers-{release.version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in _needed(release):
            archive.writestr(f"transformers/{name}", release.text(name))
        metadata = f"Metadata-Version: 2.4\nName: transformers\nVersion: {release.version}\n"
        archive.writestr(f"transformers-{release.version}.dist-info/METADATA", metadata)
    return path


def _generate(out: Path, start: Sequence[str], arguments: Sequence[str], **environment: str) -> dict[str, bytes]:
    """Runs ``generate`` in a fresh process; every file it wrote."""
    done = subprocess.run(
        [sys.executable, *start, "generate", *arguments, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=out.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("first") / "generated"
    return _generate(out, ["-m", "codegen"], [*FAMILIES, "--jobs", "1"], PYTHONHASHSEED="0")


def test_it_is_a_whole_tree(expected: dict[str, bytes]) -> None:
    variants = {f"{target}/modeling_{family}.py" for target in TARGETS for family in FAMILIES if family != "mamba"}
    packages = {"__init__.py", *(f"{target}/__init__.py" for target in TARGETS)}
    assert set(expected) == {"MANIFEST.toml", "COVERAGE.md", *packages, *variants}
    assert b"mamba" in expected["COVERAGE.md"]


def test_seed_order_processes_and_environment_do_not_matter(expected: dict[str, bytes], tmp_path: Path) -> None:
    arguments = [*reversed(FAMILIES), "--jobs", "2"]
    other = {"PYTHONHASHSEED": "4711", "LC_ALL": "C", "TZ": "Pacific/Auckland", "COLUMNS": "40", "HOME": str(tmp_path)}
    assert _generate(tmp_path / "generated", ["-m", "codegen"], arguments, **other) == expected


def test_in_two_goes_is_all_at_once(expected: dict[str, bytes], tmp_path: Path) -> None:
    for some in (FAMILIES[3:], FAMILIES[:3]):
        found = _generate(tmp_path / "generated", ["-m", "codegen"], [*some, "--jobs", "1"])
    assert found == expected


@pytest.mark.parametrize("source", ["folder", "wheel"])
def test_other_sources_without_torch_give_the_same_bytes(
    expected: dict[str, bytes], tmp_path: Path, source: str, request: pytest.FixtureRequest
) -> None:
    arguments = [*FAMILIES, "--jobs", "1", "--source", str(request.getfixturevalue(source))]
    found = _generate(tmp_path / "generated", ["-c", WITHOUT_TORCH], arguments, PYTHONHASHSEED="7")
    assert found == expected


def test_the_blocked_process_really_has_no_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "generate", "llama", "--out", str(tmp_path / "generated")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "transformers is not installed here; pass --source" in done.stderr
    assert not (tmp_path / "generated").exists()


def test_the_committed_variants_are_what_the_compiler_writes(expected: dict[str, bytes]) -> None:
    compared = {path: content for path, content in expected.items() if "/modeling_" in path}
    assert {path.split("/")[0] for path in compared} == set(TARGETS)
    for path, content in compared.items():
        assert (ROOT / "generated" / path).read_bytes() == content, f"{path} is stale; run regraft generate"
