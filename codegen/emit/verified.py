"""``generated/VERIFIED.toml``: what numerical verification found, and of which text. Written by ``regraft verify``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomlkit

from codegen.diagnostics import InputError

NAME = "VERIFIED.toml"


@dataclass(frozen=True)
class Record:
    """One family's result. ``output`` is the digest of the generated text that was verified; ``kv`` and ``ort`` are the
    largest logit errors relative to the range of upstream's logits."""

    output: str
    passed: bool
    cases: int
    kv: float | None = None
    ort: float | None = None
    note: str = ""
    scope: str = "all"  # "default" when the default configuration alone was run

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(path: Path) -> dict[str, dict[str, Record]]:
    """Records by target and family; empty when there is no file. Raises InputError when it is damaged."""
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from version control or delete it") from None
    try:
        return {
            target: {family: Record(**row) for family, row in rows.items()}
            for target, rows in data.items()
            if target != "command"
        }
    except TypeError as error:
        raise InputError(f"{path} is not a record of this compiler ({error}); delete it and verify again") from None


def render(command: str, records: Mapping[str, Mapping[str, Record]]) -> str:
    """The file's text; ``command`` is what produced the latest records."""
    document = tomlkit.document()
    document.add(tomlkit.comment("Written by regraft verify. Do not edit: verify again."))
    document.add("command", command)
    for target in sorted(records):
        table = tomlkit.table()
        for family in sorted(records[target]):
            inline = tomlkit.inline_table()
            inline.update({k: _plain(v) for k, v in asdict(records[target][family]).items() if v is not None})
            table.add(family, inline)
        document.add(target, table)
    return tomlkit.dumps(document)


def _plain(value: Any) -> Any:
    """Errors to two digits: what a reader compares, and no more than a rerun repeats."""
    return float(f"{value:.1e}") if isinstance(value, float) else value
