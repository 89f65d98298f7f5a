"""What a target's module says beside its classes' methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from codegen.derive import EmittedModule, Variant

Lines = Callable[[EmittedModule, Variant], list[str]]


@dataclass(frozen=True)
class Extras:
    """Lines of a class before its derived methods, indented; whole methods after them, not indented; the text after
    the classes; the names that this text binds."""

    before_methods: Lines
    after_methods: Lines
    tail: Callable[[EmittedModule], str]
    names: frozenset[str]


def class_name(target_prefix: str, upstream: str) -> str:
    return f"{target_prefix}{upstream}"


def ordered(emitted: EmittedModule) -> list[Variant]:
    """The variants in upstream's order, so that the file reads beside its source."""
    position = {name: index for index, name in enumerate(emitted.module.classes)}
    return sorted(emitted.variants, key=lambda v: position[v.upstream])
