"""``generated/<target>/__init__.py``: which module serves which family, and why the others have none."""

from __future__ import annotations

from collections.abc import Sequence

from codegen.driver import Compiled
from codegen.emit.coverage import reason
from codegen.emit.manifest import NOTICE, OWN_NOTICE, Own
from codegen.source import PACKAGE


def index(compiled: Sequence[Compiled], target: str, own: Own | None = None) -> str:
    """Plain data; importing it imports no variant. In a package of the user's, ``own``, modules are named relative to
    it: it may be moved."""
    package = PACKAGE if own is None else own.module
    here = f"generated.{target}" if own is None else ""
    modules = {}
    families = {}
    refused = {}
    for one in sorted(compiled, key=lambda c: c.path):
        if one.text is not None:
            upstream = f"{package}.{one.path.removesuffix('.py').replace('/', '.')}"
            modules[upstream] = f"{here}.{one.stem}"
        for family in one.generated:
            families[family.model_type] = f"{here}.{one.stem}"
        for family, diagnostics in one.refused:
            refused[family.model_type] = reason(diagnostics[0])
    return "\n".join(
        [
            f"#{NOTICE if own is None else OWN_NOTICE}",
            f'"""Index of the {target} variants. Data only: a variant is imported when it is asked for."""',
            _table("MODULES", "upstream module -> module of its variants", modules),
            _table("FAMILIES", "model type -> module of its variants", families),
            _table("REFUSED", "model type -> why it has no variant", refused),
            "",
        ]
    )


def _table(name: str, meaning: str, rows: dict[str, str]) -> str:
    """A dictionary as black writes it: this is the one text that every run renders, so black is not asked again."""
    body = "\n".join(f"    {_quoted(key)}: {_quoted(value)}," for key, value in sorted(rows.items()))
    table = f"{{\n{body}\n}}" if rows else "{}"
    return f"\n# {meaning}\n{name}: dict[str, str] = {table}"


def _quoted(text: str) -> str:
    """In double quotes, unless that takes more backslashes."""
    plain = repr(text)
    return f'"{plain[1:-1]}"' if plain[0] == "'" and '"' not in text else plain
