"""Which source a command means: upstream's release, or a folder of the user's that is named or remembered."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from codegen.diagnostics import InputError
from codegen.emit import manifest
from codegen.source import Release, open_release

if TYPE_CHECKING:
    from codegen.own.source import OwnSource

SHIPPED = Path(__file__).parent.parent.parent / "generated"
"""The tree of upstream's variants."""


def chosen_source(source: Path | None, own: Path | None, module: str | None = None, out: Path | None = None) -> Release:
    """Upstream's release ``source`` or, where one is named or ``out`` was made from one, a folder of the user's.

    Raises InputError for options that do not go together, and what opening raises.
    """
    return own_source(source, own, module, out) or open_release(source)


def own_source(source: Path | None, own: Path | None, module: str | None, out: Path | None) -> OwnSource | None:
    """The folder of the user's that is meant, None if none is."""
    written = None if out is None or out == SHIPPED else manifest.read(out / manifest.NAME)
    if own is None and (written is None or written.own is None):
        if module is not None:
            raise InputError("--module goes with --from")
        return None
    if out == SHIPPED:
        raise InputError("--from needs --out, the package that its variants are written to")
    from codegen.own.source import open_source

    return open_source(open_release(source), own, module, out if written is not None else None)
