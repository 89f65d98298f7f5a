"""By which name the classes of a folder are imported, decided from the folder alone; nothing is imported."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from keyword import iskeyword
from pathlib import Path

from codegen.diagnostics import InputError

DYNAMIC = "transformers_modules"
"""The package that upstream's loader of remote code puts modules in."""


class Loader(Enum):
    """Who makes modules of the folder's files."""

    IMPORT = "import"  # Python's own import, by one name everywhere
    REMOTE_CODE = "trust_remote_code"  # upstream's loader, by a name that depends on where the checkpoint is


@dataclass(frozen=True)
class ImportPath:
    """``package`` holds the folder's modules: ``<package>.modeling_<name>``."""

    package: str
    loader: Loader


def import_path(folder: Path, given: str | None, is_remote_code: bool) -> ImportPath:
    """The name that was given; else that of a Python package, found by its ``__init__.py`` files; else, and where
    the folder's ``config.json`` maps auto classes to it (``is_remote_code``), the one that upstream's loader gives it.

    Raises InputError for a name that is none, or does not end where the folder is.
    """
    folder = folder.resolve()
    if given is not None:
        parts = given.split(".")
        if not all(map(is_name, parts)):
            raise InputError(f"--module {given}: not the dotted name of a Python package")
        if folder.parts[-len(parts) :] != tuple(parts):
            raise InputError(
                f"--module {given}: a package of that name is a folder .../{'/'.join(parts)}, and --from is {folder}"
            )
        return ImportPath(given, Loader.IMPORT)
    names: list[str] = []
    at = folder
    while (at / "__init__.py").is_file() and is_name(at.name):
        names.insert(0, at.name)
        at = at.parent
    if names and not is_remote_code:
        return ImportPath(".".join(names), Loader.IMPORT)
    name = _as_remote_code(folder.name)
    if not is_name(name):
        raise InputError(f"the folder {folder.name!r} makes no name of a Python module; rename it")
    return ImportPath(f"{DYNAMIC}.{name}", Loader.REMOTE_CODE)


def is_name(word: str) -> bool:
    """Whether a package can have that name."""
    return word.isidentifier() and not iskeyword(word)


def _as_remote_code(folder: str) -> str:
    """As upstream's ``dynamic_module_utils`` writes the name of a local folder."""
    name = folder.replace(".", "_dot_").replace("-", "_hyphen_")
    return f"_{name}" if name[:1].isdigit() else name
