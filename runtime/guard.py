"""Variants are used with the upstream that they were derived from, or with one that means the same.

Before a generated module is imported, the release of transformers that is installed is compared with the one that the
manifest of its tree names. The same release is as good as free: the first lines of the manifest are read once. Of
another release the module's upstream file is read, as text, and the fingerprints of all that the variants are derived
from or rely on are compared with those that the manifest has. A family that did not change in meaning works although
another one changed.
"""

from __future__ import annotations

import importlib
import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "MANIFEST.toml"
SHOWN = 20
"""How many differences a message lists; the error has them all."""

_OWN_TREE = Path(__file__).resolve().parent.parent / "generated"


class ManifestError(RuntimeError):
    """The manifest of a generated tree is missing or damaged, so that nobody knows what its variants are for."""


class UpstreamChangedError(RuntimeError):
    """The release that is installed differs, in what variants are derived from, from the one they were generated from.

    Attributes:
        module: the generated module.
        upstream: upstream's file, relative to its package; or the user's, of a package of theirs.
        generated_from, installed: the two releases.
        differences: what differs (``Class.method``, ``Class``, ``function`` or ``value`` of the file, the same after
            ``file:`` for what it imports) and how.
    """

    def __init__(self, module: str, origin: _Origin, installed: str, differences: Mapping[str, str]) -> None:
        self.module = module
        self.upstream = origin.upstream
        self.generated_from = origin.version
        self.installed = installed
        self.differences = dict(differences)
        listed = [f"{name} ({how})" for name, how in list(differences.items())[:SHOWN]]
        more = len(differences) - len(listed)
        made = "from" if origin.own is None else "for"
        what = origin.upstream if origin.own is None else f"what {origin.upstream} relies on"
        super().__init__(
            f"{module} was generated {made} {origin.distribution} {origin.version}, and {installed} is installed, in "
            f"which {what} differs: {', '.join(listed)}{f' and {more} more' if more else ''}. "
            f"{_remedy(origin, installed)}"
        )


@dataclass(frozen=True)
class _Tree:
    """The first lines of a tree's manifest. ``mixed``: some files are of other releases, and say so themselves;
    ``own``: the package that the user's models are imported from, for variants of those."""

    folder: Path
    distribution: str
    version: str
    mixed: bool
    scheme: str
    own: str | None


@dataclass(frozen=True)
class _Origin:
    """What one generated module was made from."""

    tree: Path
    distribution: str
    upstream: str
    version: str
    own: str | None = None


def import_variants(module: str, models: Path | None = None) -> ModuleType:
    """Imports a generated module, ``<package>.<target>.<name>``, if the release that is installed allows it.

    Args:
        models: the folder of the user's modeling file, for variants of a model of theirs.
    Raises:
        UpstreamChangedError: it does not; also if the module cannot be imported with another release.
        ManifestError: the tree has no manifest, or a damaged one.
        ImportError: the module cannot be imported, with the release that it was generated from.
    """
    with guarded(module, models):
        return importlib.import_module(module)


@contextmanager
def guarded(module: str, models: Path | None = None) -> Iterator[None]:
    """Around running a generated module in another way: checks, and raises, as `import_variants` does."""
    check_upstream(module, models)
    try:
        yield
    except ImportError as error:
        origin, installed = _compared(module)
        if origin is None:
            raise
        raise UpstreamChangedError(module, origin, installed, {"an import": str(error)}) from error


def check_upstream(module: str, models: Path | None = None) -> None:
    """Compares the release that is installed with the one that a generated module was made from, once per module.

    Args:
        models: as for `import_variants`.
    Raises:
        UpstreamChangedError: what the variants are derived from or rely on differs in meaning.
        ManifestError: the tree has no manifest, or a damaged one.
    """
    origin, installed = _compared(module)
    if origin is None:
        return
    differences = _differences(module, installed, _package_folder(origin.distribution), models)
    if differences:
        raise UpstreamChangedError(module, origin, installed, differences)


def _compared(module: str) -> tuple[_Origin | None, str]:
    """What a module was made from, None where that is what is installed; and the release that is installed."""
    tree = _tree(module)
    installed = installed_version(tree.distribution)
    if same_release(tree.version, installed) and not tree.mixed:
        return None, installed
    origin = _origin(module, tree)
    return (None if same_release(origin.version, installed) else origin), installed


def explain_unknown(index: str) -> str:
    """What to add to the message that a model type is unknown; nothing where the release is the tree's own.

    Args:
        index: the package of a target's variants, ``<package>.<target>``.
    """
    try:
        tree = _tree(f"{index}.")
    except ManifestError:
        return ""  # a registry without a generated tree
    installed = installed_version(tree.distribution)
    if same_release(tree.version, installed):
        return ""
    return (
        f"; the variants were generated from {tree.distribution} {tree.version}, and {installed} is installed: what is "
        f"new there has none. {_remedy(_Origin(tree.folder, tree.distribution, '', tree.version), installed)}"
    )


def installed_version(distribution: str) -> str:
    """What the package itself says that it is, which is what runs."""
    return str(importlib.import_module(distribution).__version__)


@cache
def same_release(one: str, other: str) -> bool:
    """Whether two versions are one release: ``5.9`` and ``5.9.0`` are, and a local build (``5.9.0+cpu``) is its
    release; a development version is one of its own."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(Version(one).public) == Version(Version(other).public)
    except InvalidVersion:
        return one == other


def _remedy(origin: _Origin, installed: str) -> str:
    from packaging.version import InvalidVersion, Version

    if origin.own is not None:
        command = f"regraft generate{_out(origin.tree)}"
        return f"Run `{command}` with {installed} installed and verify again, or install {_pin(origin)}"
    try:
        version = Version(installed)
        released = not version.is_devrelease
        name = version.public
    except InvalidVersion:
        released, name = False, installed
    command = f"regraft bump {name}"
    if not released:
        command += f" --source {_package_folder(origin.distribution)}"
    return f"Run `{command}{_out(origin.tree)}`, or install {_pin(origin)}"


def _pin(origin: _Origin) -> str:
    return f"{origin.distribution}=={origin.version}"


def _tree(module: str) -> _Tree:
    return _header(".".join(module.split(".")[:-2]))


@cache
def _header(package: str) -> _Tree:
    """Reads no more than the tables before the first list of files."""
    path = _manifest_path(package)
    try:
        with path.open(encoding="utf-8") as file:
            head = "".join(takewhile(lambda line: not line.startswith("[["), file))
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(path, str(error)) from None
    data = _parsed(path, head)
    try:
        upstream = data["upstream"]
        scheme = data["compiler"].get("fingerprints", "")
        mixed = upstream.get("mixed", False)
        own = data["own"]["module"] if "own" in data else None
        return _Tree(path.parent, upstream["distribution"], upstream["version"], mixed, scheme, own)
    except (KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, f"it says no {error}") from None


def _manifest_path(package: str) -> Path:
    try:
        spec = find_spec(package) if package else None
    except (ImportError, ValueError):
        spec = None
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if not places:
        raise ManifestError(
            f"{package or 'the top level'} is no package with variants of several targets and their {MANIFEST}, as "
            "`regraft generate` writes it"
        )
    path = Path(places[0]).resolve() / MANIFEST
    if not path.is_file():
        raise ManifestError(
            f"{path} is missing, so that nobody knows which release the variants of {package} are for; restore it from "
            f"version control, or run `regraft generate{_out(path.parent)}`"
        )
    return path


def _parsed(path: Path, text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _unusable(path, str(error)) from None


def _unusable(path: Path, why: str) -> ManifestError:
    return ManifestError(
        f"{path} is damaged ({why}); restore it from version control, or delete it and run "
        f"`regraft generate{_out(path.parent)}`"
    )


def _out(tree: Path) -> str:
    return "" if tree == _OWN_TREE else f" --out {shlex.quote(str(tree))}"


@cache
def _rows(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The whole manifest: ``<target>.<module>`` -> what it says of the module's upstream file, with what each import
    leads to instead of its digest; None where the manifest does not have it."""
    try:
        data = _parsed(path, path.read_text("utf-8"))
        parts = data.get("parts", {})
        return {
            f"{target}.{row['upstream'].rpartition('/')[2].removesuffix('.py')}": {
                **row,
                "imported": {key: parts.get(digest) for key, digest in row.get("imported", {}).items()},
            }
            for target, rows in data["targets"].items()
            for row in rows
        }
    except (OSError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(path, repr(error)) from None


def _row(module: str, tree: _Tree) -> Mapping[str, Any]:
    path = tree.folder / MANIFEST
    name = ".".join(module.rsplit(".", 2)[1:])
    try:
        return _rows(path)[name]
    except KeyError:
        raise _unusable(path, f"it says nothing of {name}") from None


def _origin(module: str, tree: _Tree) -> _Origin:
    row = _row(module, tree)
    return _Origin(tree.folder, tree.distribution, row["upstream"], row.get("version", tree.version), tree.own)


@cache
def _differences(module: str, installed: str, upstream: Path, models: Path | None) -> Mapping[str, str]:
    """What differs in meaning, by name, and how; read from the text of the release that is in a folder, and of the
    user's models, if it is of those."""
    from runtime.fingerprint import SCHEME
    from runtime.fingerprint.beside import place
    from runtime.fingerprint.dependence import compared

    tree = _tree(module)
    row = _row(module, tree)
    if tree.scheme != SCHEME or "methods" not in row or "relied_on" not in row or None in row["imported"].values():
        raise ManifestError(
            f"{tree.folder / MANIFEST} was written by another version of regraft, so that {tree.distribution} "
            f"{installed} cannot be compared with {tree.version}; run `regraft generate{_out(tree.folder)}`, or "
            f"install {tree.distribution}=={tree.version}"
        )
    path = row["upstream"] if tree.own is None else place(tree.own, row["upstream"])
    release = _release(upstream, tree.own, models)
    found = compared(release, path, row["methods"], row["relied_on"], row["imported"])
    if not found:
        logger.info(
            "%s: %s %s is installed; what the variants need of it means the same as in %s",
            module,
            tree.distribution,
            installed,
            row.get("version", tree.version),
        )
    return found


@cache
def _release(folder: Path, own: str | None, models: Path | None) -> Any:
    from runtime.fingerprint.beside import read
    from runtime.fingerprint.dependence import BESIDE, Release

    def text(path: str) -> str | None:
        if path.startswith(BESIDE):
            return None if own is None or models is None else read(own, models, path)
        try:
            return (folder / path).read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    return Release(text)


def _package_folder(distribution: str) -> Path:
    spec = find_spec(distribution)
    if spec is None or spec.origin is None:
        raise ManifestError(f"the source of {distribution} is not on this machine, so that it cannot be compared")
    return Path(spec.origin).parent
