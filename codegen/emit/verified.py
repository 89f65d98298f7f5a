"""``generated/VERIFIED.toml``: what numerical verification found, and of which text. Written by ``regraft verify``."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomlkit

from codegen.diagnostics import InputError

NAME = "VERIFIED.toml"


@dataclass(frozen=True)
class Errors:
    """What is measured of a target: names in the file, titles in tables, and what the numbers are."""

    titles: Mapping[str, str]
    meaning: str


ERRORS: Mapping[str, Errors] = {
    "qeff": Errors(
        {"kv": "torch error", "ort": "ONNX Runtime error"},
        "Errors are the largest difference of a logit from upstream's, relative to the range of upstream's logits, over"
        " all cases, prompts and steps.",
    ),
    "rmpad": Errors(
        {
            "logits": "logits error",
            "loss": "loss error",
            "grad": "gradient error",
            "isolation": "isolation error",
            "trained": "training error",
            "liger": "Liger error",
        },
        "Upstream runs each sequence alone. Errors are the largest over all cases and batches: of a logit, relative to"
        " the range of upstream's logits; of the loss; of a parameter's gradient, relative in norm (at least a"
        " thousandth of the largest gradient's); of a logit when another sequence of the batch changes; of what two"
        " epochs of AdamW add to the parameters; and the largest of the first three with Liger's kernels.",
    ),
}


@dataclass(frozen=True)
class Record:
    """One family's result. ``output`` is the digest of the generated text that was verified; ``errors`` by name, see
    ``ERRORS``, without those that nothing was measured of."""

    output: str
    passed: bool
    cases: int
    errors: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    scope: str = "all"  # "default" when the default configuration alone was run

    def as_dict(self) -> dict[str, Any]:
        """Errors beside the rest, as in the file."""
        beginning = {"output": self.output, "passed": self.passed, "cases": self.cases}
        return {**beginning, **self.errors, "note": self.note, "scope": self.scope}


def read(path: Path) -> dict[str, dict[str, Record]]:
    """Records by target and family; empty when there is no file. Raises InputError when it is damaged."""
    try:
        return parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return {}


def parse(content: bytes, path: str) -> dict[str, dict[str, Record]]:
    """The records that a file holds; ``path`` is what errors call it. Raises InputError when it is damaged."""
    try:
        data = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); restore it from version control or delete it") from None
    try:
        return {
            target: {family: _record(row, ERRORS[target]) for family, row in rows.items()}
            for target, rows in data.items()
            if target != "command"
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is not a record of this compiler ({error}); delete it and verify again") from None


def _record(row: Mapping[str, Any], known: Errors) -> Record:
    errors = {name: float(value) for name, value in row.items() if name in known.titles}
    return Record(errors=errors, **{name: value for name, value in row.items() if name not in known.titles})


def render(records: Mapping[str, Mapping[str, Record]]) -> str:
    """The file's text."""
    document = tomlkit.document()
    document.add(tomlkit.comment("Written by regraft verify. Do not edit: verify again."))
    document.add("command", "regraft verify --all --record --target TARGET")
    for target in sorted(records):
        table = tomlkit.table()
        for family in sorted(records[target]):
            inline = tomlkit.inline_table()
            inline.update({k: _plain(v) for k, v in records[target][family].as_dict().items()})
            table.add(family, inline)
        document.add(target, table)
    return tomlkit.dumps(document)


def _plain(value: Any) -> Any:
    """Errors to two digits: what a reader compares, and no more than a rerun repeats."""
    return float(f"{value:.1e}") if isinstance(value, float) else value
