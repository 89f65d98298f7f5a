"""Where files of a package that is not upstream's stand among upstream's: beside it, under the name that they are
imported by. ``modeling_tarn.py`` of ``acme.models.tarn`` is ``../acme/models/tarn/modeling_tarn.py``, whatever folder
it is read from."""

from __future__ import annotations

from pathlib import Path
from posixpath import join, relpath

from runtime.fingerprint.dependence import BESIDE, DISTRIBUTION


def place(package: str, path: str) -> str:
    """The path of a file of a package, relative to upstream's package; ``path`` is relative to the file's own."""
    return path if package == DISTRIBUTION else join(_folder(package), path)


def read(package: str, folder: Path, path: str) -> str | None:
    """The text of a file by its path as `place` gives it; None where there is none, or none that is text.

    Args:
        package: the package whose files are in ``folder``. Files of the packages that it is in are found above it.
    """
    top = join(BESIDE, package.partition(".")[0])
    if not path.startswith(f"{top}/"):
        return None
    try:
        return (folder / relpath(path, _folder(package))).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _folder(package: str) -> str:
    return join(BESIDE, *package.split("."))
