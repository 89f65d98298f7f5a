"""What the compiler recorded: which families there are, the configuration fields that each one's code branches on, and
what upstream they are for."""

import tomllib
from importlib import import_module
from importlib.resources import files
from typing import Any

from runtime.guard import ManifestError, UpstreamChangedError, check_upstream


def recorded_switches(target: str) -> dict[str, tuple[str, ...]]:
    """Field names by model type, from generated/MANIFEST.toml; empty where nothing was generated yet."""
    manifest = files("generated") / "MANIFEST.toml"
    if not manifest.is_file():
        return {}
    data: dict[str, Any] = tomllib.loads(manifest.read_text(encoding="utf-8"))
    found: dict[str, tuple[str, ...]] = {}
    for module in data.get("targets", {}).get(target, ()):
        for family in module.get("families", ()):
            found[family["type"]] = tuple(module.get("switches", ()))
    return found


def generated_families(target: str) -> tuple[str, ...]:
    """The families that have variants, sorted; none where the target was not generated."""
    try:
        index = import_module(f"generated.{target}")
    except ModuleNotFoundError:
        return ()
    return tuple(sorted(index.FAMILIES))


def why_not_here(target: str, family: str) -> str:
    """Why a family's variants cannot be used with the release that is installed; empty where they can, or where the
    family has none."""
    try:
        module = import_module(f"generated.{target}").FAMILIES.get(family)
        if module is not None:
            check_upstream(module)
    except ModuleNotFoundError:
        return ""
    except (UpstreamChangedError, ManifestError) as error:
        return str(error)
    return ""
