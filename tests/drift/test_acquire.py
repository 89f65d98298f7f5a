"""Releases by name: pip's own download, from a folder of wheels instead of an index."""

import zipfile
from pathlib import Path

import pytest

from codegen import acquire as module
from codegen.acquire import acquire
from codegen.diagnostics import InputError
from codegen.source import installed


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip looks at; and a cache that is empty."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path / "cache" / "wheels")
    return folder


def _wheel(folder: Path, version: str, stated: str = "", python: str = ">=3.8") -> Path:
    path = folder / f"transformers-{version}-py3-none-any.whl"
    info = f"transformers-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("transformers/__init__.py", "raise SystemExit('imported')\n")
        archive.writestr("transformers/models/auto/modeling_auto.py", "")
        metadata = (
            f"Metadata-Version: 2.1\nName: transformers\nVersion: {stated or version}\nRequires-Python: {python}\n"
        )
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_version_is_downloaded_once(wheels: Path, tmp_path: Path) -> None:
    wheel = _wheel(wheels, "0.7.1", python=">=9")
    assert acquire("0.7.1").version == "0.7.1"
    wheel.unlink()
    assert acquire("0.7.1").version == "0.7.1", "from the cache"
    kept = sorted(p.relative_to(tmp_path).as_posix() for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert kept == [f"cache/wheels/0.7.1/{wheel.name}"]


def test_a_damaged_wheel_in_the_cache_is_downloaded_again(wheels: Path, tmp_path: Path) -> None:
    wheel = _wheel(wheels, "0.7.1")
    kept = tmp_path / "cache/wheels/0.7.1" / wheel.name
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half")
    assert acquire("0.7.1").version == "0.7.1"
    assert kept.read_bytes() == wheel.read_bytes()


def test_a_version_that_is_not_there() -> None:
    with pytest.raises(
        InputError, match=r"transformers 0\.7\.1 cannot be had: .*No matching distribution.*pass a wheel"
    ):
        acquire("0.7.1")


def test_no_source_distribution_is_built(wheels: Path) -> None:
    (wheels / "transformers-0.7.1.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="No matching distribution"):
        acquire("0.7.1")


def test_no_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho '/usr/bin/python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(InputError, match="No module named pip; pass a wheel"):
        acquire("0.7.1")


def test_a_cache_that_cannot_be_written(wheels: Path, tmp_path: Path) -> None:
    _wheel(wheels, "0.7.1")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"cannot keep transformers 0\.7\.1 in .*: Not a directory"):
        acquire("0.7.1")


def test_what_is_installed_is_not_downloaded() -> None:
    version = installed().version
    assert acquire("installed").version == acquire(version).version == version


def test_paths(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert acquire(str(_wheel(wheels, "0.7.1"))).version == "0.7.1"
    with pytest.raises(InputError, match="neither a version, nor a wheel or folder that exists"):
        acquire("0.7.x")
    monkeypatch.chdir(tmp_path)
    _wheel(wheels, "0.8")
    (tmp_path / "0.8").mkdir()
    assert acquire("0.8").version == "0.8", "a version comes first"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("transformers/__init__.py", b"__version__ = get_version()\n", "states no __version__"),
        ("transformers/__init__.py", b"__version__ = 5\n", "states no __version__"),
        ("transformers/__init__.py", b"x = \xff\n", "can't decode"),
        ("transformers-1.0.0.dist-info/METADATA", b"Version: \xff\n", "can't decode"),
        ("transformers-1.0.0.dist-info/METADATA", b"Name: transformers\n", "states no version"),
    ],
)
def test_a_folder_that_does_not_say_its_version(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    for path, text in (("transformers/models/auto/modeling_auto.py", b""), (name, content)):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(text)
    with pytest.raises(InputError, match=message) as told:
        acquire(str(tmp_path))
    assert name in str(told.value)
