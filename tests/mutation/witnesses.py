"""The committed examples of mutations that show."""

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path

import tomlkit
from mutants import MUTATIONS, Mutation
from texts import text_of

from codegen.diagnostics import Refused

FILE = Path(__file__).parent / "witnesses.toml"


@dataclass(frozen=True)
class Witness:
    """Where a mutation shows.

    Either the compiler refuses (``refused``: the first diagnostic's rule); or in a case and stage a check fails that
    the unchanged variant passes; or an operator is ``lost`` or ``gained`` by the exported graph; or a ``kernel`` is not
    launched any more.
    """

    family: str
    refused: str = ""
    case: str = ""
    stage: str = ""
    check: str = ""
    lost: str = ""
    gained: str = ""
    kernel: str = ""


def read() -> dict[str, Witness]:
    """By name of the mutation; none where nothing was found yet."""
    rows = tomllib.loads(FILE.read_text("utf-8")) if FILE.is_file() else {}
    return {name: Witness(**row) for name, row in rows.items()}


def write(found: dict[str, Witness]) -> None:
    """In the order of the mutations; those that are no more are left out."""
    rows = {
        name: {key: value for key, value in asdict(found[name]).items() if value} for name in MUTATIONS if name in found
    }
    FILE.write_text("# Written by tests/mutation/search.py.\n\n" + tomlkit.dumps(rows), "utf-8")


def refusal(family: str, mutation: Mutation) -> str:
    """The rule of the first diagnostic of a compiler without something; empty when it compiles."""
    try:
        text_of(family, mutation)
    except Refused as error:
        return error.diagnostics[0].rule
    return ""
