"""The pipeline as one readable function: a release's text in, the text of ``generated/`` out. Touches no disk but upstream's."""

from __future__ import annotations

from dataclasses import dataclass

from codegen.derive import EmittedModule, derive
from codegen.diagnostics import Diagnostic, Refused
from codegen.discovery import Family
from codegen.emit.module import render
from codegen.recognize.family import recognize
from codegen.shared import shared_functions
from codegen.source import Release
from codegen.targets.base import Target
from codegen.upstream import UpstreamModule


@dataclass(frozen=True)
class Compiled:
    """What came of one upstream file for one target."""

    path: str
    target: str
    generated: tuple[Family, ...]  # the families the text serves
    refused: tuple[tuple[Family, tuple[Diagnostic, ...]], ...]
    text: str | None = None
    emitted: EmittedModule | None = None


def compile_file(release: Release, path: str, families: tuple[Family, ...], target: Target) -> Compiled:
    """One upstream file: heads that can be derived go into one text; the others carry their diagnostics."""
    refused: list[tuple[Family, tuple[Diagnostic, ...]]] = []
    try:
        module = UpstreamModule(path, release.text(path))
    except Refused as error:
        return Compiled(path, target.name, (), tuple((f, error.diagnostics) for f in families))
    accepted: list[Family] = []
    for family in families:
        try:
            derive(module, recognize(module, ((family.model_type, family.head),)), target)
            accepted.append(family)
        except Refused as error:
            refused.append((family, error.diagnostics))
    if not accepted:
        return Compiled(path, target.name, (), tuple(refused))
    try:
        emitted = derive(module, recognize(module, tuple((f.model_type, f.head) for f in accepted)), target)
        local, shared = shared_functions(emitted)
        text = render(emitted, local, shared)
    except Refused as error:
        return Compiled(path, target.name, (), (*refused, *((f, error.diagnostics) for f in accepted)))
    return Compiled(path, target.name, tuple(accepted), tuple(refused), text, emitted)
