"""A release by its name: a version that pip downloads, a wheel, a folder, or what is installed. Nothing is imported
from it, and nothing of it is run: a source distribution, whose build would run, is never asked for."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import InvalidVersion, Version
from platformdirs import user_cache_path

from codegen.diagnostics import InputError
from codegen.source import PACKAGE, Release, installed, open_release

INSTALLED = "installed"


def acquire(name: str) -> Release:
    """The release that is meant: ``installed``, a version, or a path; a path that looks like a version needs ``./``.

    A version that is not installed is downloaded once into the user's cache folder. Raises InputError when it cannot
    be had.
    """
    if name == INSTALLED:
        return installed()
    version = as_version(name)
    if version is not None:
        return _of_version(version)
    if Path(name).exists():
        return open_release(name)
    raise InputError(f'{name} is neither a version, nor a wheel or folder that exists, nor "{INSTALLED}"')


def as_version(name: str) -> Version | None:
    """The version that a word is, None when it is none."""
    try:
        return Version(name)
    except InvalidVersion:
        return None


def same_version(one: str, other: str) -> bool:
    """Whether two words name one version; ``5.9`` and ``5.9.0`` do."""
    return one == other or (as_version(one) is not None and as_version(one) == as_version(other))


def cache_folder() -> Path:
    """Where downloaded wheels stay."""
    return user_cache_path("regraft", appauthor=False) / "wheels"


def _of_version(version: Version) -> Release:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if as_version(importlib.metadata.version(PACKAGE)) == version:
            return installed()
    folder = cache_folder() / str(version)
    for wheel in sorted(folder.glob(f"{PACKAGE}-*.whl")):
        with contextlib.suppress(InputError):  # damaged: it is downloaded again
            return _checked(wheel, version)
    return _downloaded(version, folder)


def _checked(wheel: Path, version: Version) -> Release:
    release = open_release(wheel)
    if as_version(release.version) != version:
        raise InputError(f"{wheel} is {PACKAGE} {release.version}, not {version}")
    return release


def _downloaded(version: Version, folder: Path) -> Release:
    """pip's own download, first beside the cached wheels and then renamed, so that none is ever half there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="part-") as part:
            _pip_download(version, part)
            wheel = next(Path(part).glob("*.whl"), None)
            if wheel is None:
                raise InputError(f"pip downloaded no wheel of {PACKAGE} {version}; {_REMEDY}")
            _checked(wheel, version)
            os.replace(wheel, folder / wheel.name)
            return _checked(folder / wheel.name, version)
    except OSError as error:
        raise InputError(f"cannot keep {PACKAGE} {version} in {folder}: {error.strerror}; {_REMEDY}") from None


_REMEDY = "pass a wheel file or a folder with its source instead"


def _pip_download(version: Version, folder: str) -> None:
    options = (
        "--no-deps",
        "--no-binary=:none:",  # whatever the user's configuration says
        "--only-binary=:all:",
        "--ignore-requires-python",  # it is read, never run
        "--disable-pip-version-check",
        "--no-input",
        "--quiet",
    )
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, f"{PACKAGE}=={version}"]
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ended.returncode == 0:
        return
    said = [line.removeprefix("ERROR: ") for line in ended.stderr.splitlines() if line.startswith("ERROR: ")]
    reason = said[-1] if said else (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    raise InputError(f"{PACKAGE} {version} cannot be had: pip download says: {reason}; {_REMEDY}")
