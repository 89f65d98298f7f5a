"""An upstream release as text: an installed distribution, a wheel file, or a folder. Nothing is imported from it."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from codegen.diagnostics import InputError, MissingSourceError, SourceError, Span, damaged

if TYPE_CHECKING:
    from codegen.discovery import Family
    from codegen.emit.manifest import Own

PACKAGE = "transformers"

# What reading a folder or an archive raises; zipfile says RuntimeError for an encrypted member.
_READ_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)


class _Reader(Protocol):
    def read(self, path: str) -> bytes: ...

    def paths(self) -> Iterator[str]: ...


@dataclass(frozen=True)
class _Folder:
    """``root`` holds the package's own files (``models/``, ``__init__.py`` ...)."""

    root: Path

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def paths(self) -> Iterator[str]:
        for path in sorted(self.root.glob("models/*/*.py")):
            yield path.relative_to(self.root).as_posix()


@dataclass(frozen=True)
class _Wheel:
    archive: zipfile.ZipFile

    def read(self, path: str) -> bytes:
        return self.archive.read(f"{PACKAGE}/{path}")

    def paths(self) -> Iterator[str]:
        for name in sorted(self.archive.namelist()):
            parts = PurePosixPath(name).parts
            if len(parts) == 4 and parts[:2] == (PACKAGE, "models") and name.endswith(".py"):
                yield "/".join(parts[1:])


@dataclass(frozen=True)
class Release:
    """One upstream release. Paths are relative to the package (``models/llama/modeling_llama.py``)."""

    version: str
    _reader: _Reader = field(repr=False)
    requirements: tuple[str, ...] = field(default=(), kw_only=True)
    """What its metadata says it requires (PEP 508), none where it has no metadata."""

    @property
    def package(self) -> str:
        """The package that its modules are imported from."""
        return PACKAGE

    @property
    def families(self) -> tuple[Family, ...] | None:
        """The families it has, where no mapping lists them."""
        return None

    def record(self, out: Path) -> Own | None:
        """Where it is, seen from the tree ``out``, for a source that is no release of upstream's."""
        return None

    def text(self, path: str) -> str:
        """The file's text. Raises SourceError when it cannot be read, MissingSourceError when it is not there."""
        try:
            content = self._reader.read(path)
        except (KeyError, FileNotFoundError):
            problem = damaged(Span(path), "a file", "no such file")
            raise MissingSourceError(f"{PACKAGE} {self.version} has no file {path}", problem) from None
        except _READ_ERRORS as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            problem = damaged(Span(path), "a readable file", reason)
            raise SourceError(f"{PACKAGE} {self.version}: cannot read {path}: {reason}", problem) from None
        try:
            return content.decode("utf-8")
        except UnicodeDecodeError as error:
            before = content[: error.start]
            span = Span(path, before.count(b"\n") + 1, error.start - before.rfind(b"\n"))
            problem = damaged(span, "UTF-8 text", f"byte 0x{content[error.start]:02x} ({error.reason})")
            raise SourceError(f"{PACKAGE} {self.version}: {span} is not UTF-8 text ({error.reason})", problem) from None

    def text_if_readable(self, path: str) -> str | None:
        """The file's text; None when it cannot be read, or is not there."""
        try:
            return self.text(path)
        except SourceError:
            return None

    def digest(self, path: str) -> str:
        """First 16 hex digits of the sha256 of the file's text."""
        return hashlib.sha256(self.text(path).encode()).hexdigest()[:16]

    @cached_property
    def files(self) -> frozenset[str]:
        return frozenset(self._reader.paths())


def installed() -> Release:
    """The distribution that is installed beside the compiler; found, not imported."""
    try:
        version = importlib.metadata.version(PACKAGE)
        spec = find_spec(PACKAGE)
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        spec = None
    if spec is None or spec.origin is None:
        raise InputError(
            f"{PACKAGE} is not installed here; pass --source with a wheel file or a folder that holds its source"
        )
    requirements = tuple(importlib.metadata.requires(PACKAGE) or ())
    return Release(version, _Folder(Path(spec.origin).parent), requirements=requirements)


def open_release(source: str | Path | None) -> Release:
    """``None`` is the installed distribution; else a ``.whl`` file, a site-packages-like folder, a checkout, or the
    package folder itself. Raises InputError when none of these is there."""
    if source is None:
        return installed()
    path = Path(source)
    if path.is_file():
        try:
            archive = zipfile.ZipFile(path)
            metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
            text = archive.read(metadata).decode("utf-8")
        except (*_READ_ERRORS, StopIteration, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not a readable wheel: {str(error) or 'no METADATA inside'}") from None
        version, requirements = _metadata(text, path)
        return Release(version, _Wheel(archive), requirements=requirements)
    if path.is_dir():
        for root in (path, path / PACKAGE, path / "src" / PACKAGE):
            if (root / "models" / "auto" / "modeling_auto.py").is_file():
                version, requirements = _folder_metadata(root)
                return Release(version, _Folder(root), requirements=requirements)
        raise InputError(f"{path} holds no {PACKAGE} source (no models/auto/modeling_auto.py below it)")
    raise InputError(f"{path} does not exist")


def _metadata(text: str, path: Path) -> tuple[str, tuple[str, ...]]:
    """The version and the requirements that a METADATA file states."""
    from packaging.metadata import parse_email  # slow to import, and not needed for what is installed

    raw, _ = parse_email(text)
    if "version" not in raw:
        raise InputError(f"{path}: METADATA states no version")
    return raw["version"], tuple(raw.get("requires_dist", ()))


def _folder_metadata(root: Path) -> tuple[str, tuple[str, ...]]:
    """A package states its version as ``__version__ = "..."`` in ``__init__.py``; an unpacked wheel has its metadata
    beside it."""
    for dist_info in sorted(root.parent.glob(f"{PACKAGE}-*.dist-info/METADATA")):
        try:
            text = dist_info.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{dist_info}: {error}") from None
        return _metadata(text, dist_info)
    try:
        tree = ast.parse((root / "__init__.py").read_text("utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{root / '__init__.py'}: {error}") from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                return node.value.value, ()
    raise InputError(f'{root / "__init__.py"} states no __version__ (a text, as in __version__ = "1.0.0")')
