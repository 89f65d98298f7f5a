"""Packages of variants beside the shipped ones: what ``regraft generate --from`` wrote for models of the user's.

``runtime.register("my_variants")`` makes one known to both runtimes, for this process. Its variants are imported when a
model asks for them. Nothing heavy is imported here.
"""

import importlib
import importlib.util
import os
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from runtime.fingerprint import text_digest

TARGETS = ("qeff", "rmpad")
MANIFEST = "MANIFEST.toml"
IMPORTED = "import"
"""The loader of packages whose models have one import path everywhere; see ``codegen.own.import_path``."""


class RegistrationError(ValueError):
    """A package cannot be registered. The message says why, and what to do."""


@dataclass(frozen=True)
class Package:
    """A generated package.

    name, folder: of the package; module: the package that its models' classes are imported from; loader: by whom;
    origin: the folder that it was compiled from, which need not be there; sources: modeling file -> digest of the text
    that the variants were derived from; modules: by target, upstream module -> module of its variants; families,
    refused: by target, by model type, module of its variants or the reason why there are none.
    """

    name: str
    folder: Path
    module: str
    loader: str
    origin: Path
    sources: Mapping[str, str]
    modules: Mapping[str, Mapping[str, str]]
    families: Mapping[str, Mapping[str, str]]
    refused: Mapping[str, Mapping[str, str]]

    @property
    def types(self) -> frozenset[str]:
        """Every model type that it tells of."""
        return frozenset(name for table in (self.families, self.refused) for named in table.values() for name in named)

    @property
    def command(self) -> str:
        """Generates it again."""
        return f"regraft generate --out {shlex.quote(str(self.folder))}"

    @property
    def variants(self) -> frozenset[str]:
        """Every module of variants that it holds."""
        return frozenset(name for table in self.modules.values() for name in table.values())


_packages: dict[str, Package] = {}


def register(package: str | ModuleType) -> None:
    """Makes a generated package known: its models are found by ``KVCacheTransform``, ``QEFFAutoModelForCausalLM``,
    ``patch_for_training`` and ``MONKEY_PATCHER`` as upstream's are.

    Args:
        package: the package, or its dotted name.
    Raises:
        RegistrationError: it cannot be imported or was not generated; it is registered already; one of its model types
            is a shipped one or another package's; a modeling file is not there, or not the one that the variants were
            derived from.
    """
    name = package.__name__ if isinstance(package, ModuleType) else package
    if name in _packages:
        raise RegistrationError(f"{name} is registered already; runtime.unregister({name!r}) takes it back")
    found = _read(name)
    shipped = {t for target in TARGETS for t in _shipped_types(target)}
    if clash := sorted(found.types & shipped):
        raise RegistrationError(
            f"{name}: model type {clash[0]!r} is one of regraft's own; give yours another model_type"
        )
    for other in _packages.values():
        if clash := sorted(found.types & other.types):
            raise RegistrationError(f"{name}: model type {clash[0]!r} is registered by {other.name} already")
    _check_sources(found)
    _packages[name] = found


def unregister(package: str | ModuleType) -> None:
    """Forgets a package. Models that have its variants keep them.

    Raises:
        RegistrationError: it is not registered.
    """
    name = package.__name__ if isinstance(package, ModuleType) else package
    if name not in _packages:
        raise RegistrationError(f"{name} is not registered; registered: {', '.join(_packages) or 'nothing'}")
    del _packages[name]


def registered() -> tuple[Package, ...]:
    """The packages of this process, in the order of registration."""
    return tuple(_packages.values())


def _read(name: str) -> Package:
    try:
        folder = Path(cast(str, importlib.import_module(name).__file__)).parent
    except (ImportError, TypeError) as error:
        raise RegistrationError(f"{name} cannot be imported as a package: {error}") from error
    try:
        manifest: dict[str, Any] = tomllib.loads((folder / MANIFEST).read_text("utf-8"))
        own = manifest["own"]
        indexes = {target: importlib.import_module(f"{name}.{target}") for target in TARGETS}
        package = Package(
            name,
            folder,
            own["module"],
            own["loader"],
            Path(os.path.normpath(folder.resolve() / own["folder"])),
            own["sources"],
            {target: _absolute(f"{name}.{target}", index.MODULES) for target, index in indexes.items()},
            {target: _absolute(f"{name}.{target}", index.FAMILIES) for target, index in indexes.items()},
            {target: dict(index.REFUSED) for target, index in indexes.items()},
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:  # TOML's is a ValueError
        raise RegistrationError(
            f"{name} ({folder}) is not a package that `regraft generate --from` wrote: {type(error).__name__}: {error}"
        ) from error
    return package


def _absolute(package: str, table: Mapping[str, str]) -> dict[str, str]:
    return {key: importlib.util.resolve_name(module, package) for key, module in table.items()}


def _shipped_types(target: str) -> frozenset[str]:
    try:
        index = importlib.import_module(f"generated.{target}")
    except ModuleNotFoundError:
        return frozenset()
    return frozenset({*index.FAMILIES, *index.REFUSED})


def _check_sources(package: Package) -> None:
    """The modeling files, where they can be found now, are those that the variants were derived from."""
    for file, digest in package.sources.items():
        place = place_of(package, file)
        if place is not None and text_digest(place.read_bytes()) != digest:
            raise RegistrationError(f"{package.name} is stale: {place} has changed since; run `{package.command}`")


def place_of(package: Package, file: str) -> Path | None:
    """A modeling file. One that is loaded with a checkpoint is looked for where it was compiled from, and need not be
    there: it is compared when a model of it comes.

    Raises:
        RegistrationError: it is to be imported, and cannot be.
    """
    if package.loader != IMPORTED:
        place = package.origin / file
        return place if place.is_file() else None
    module = f"{package.module}.{file.removesuffix('.py')}"
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise RegistrationError(f"{package.name} is of {module}, which cannot be imported: {error}") from error
    if spec is None or spec.origin is None:
        raise RegistrationError(
            f"{package.name} is of {module}, which cannot be imported: no such module. Install its package, or put the"
            " folder that holds it on the path"
        )
    return Path(spec.origin)
