"""The configuration fields that each family's code branches on, as the compiler recorded them."""

import tomllib
from importlib.resources import files
from typing import Any


def recorded_switches() -> dict[str, tuple[str, ...]]:
    """Field names by family, from generated/MANIFEST.toml; empty where nothing was generated yet."""
    manifest = files("generated") / "MANIFEST.toml"
    if not manifest.is_file():
        return {}
    data: dict[str, Any] = tomllib.loads(manifest.read_text(encoding="utf-8"))
    families = data.get("families", {})
    return {name: tuple(entry.get("switches", ())) for name, entry in families.items() if isinstance(entry, dict)}


def generated_families() -> tuple[str, ...]:
    """The families that have variants, sorted."""
    from generated import qeff

    return tuple(sorted(qeff.FAMILIES))
