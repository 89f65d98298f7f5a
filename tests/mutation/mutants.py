"""Variants as the compiler would write them without one rule or one fact, and a way to run them.

The generated tree is left alone: the text is compiled in memory, and takes the generated module's place in this process
for as long as a context lasts.
"""

import importlib
import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import generated
from codegen.derive import derive
from codegen.driver import Compiled
from codegen.emit import manifest
from codegen.emit.module import render
from codegen.ir import FamilyIR, NormScale, RotaryStyle
from codegen.recognize.family import recognize
from codegen.shared import shared_functions
from codegen.source import installed
from codegen.targets.base import Target
from codegen.targets.qeff import QEFF
from codegen.upstream import UpstreamModule

GENERATED = Path(next(iter(generated.__path__)))
PACKAGE = f"generated.{QEFF.name}"


def _same_target(target: Target) -> Target:
    return target


def _same_facts(family: FamilyIR) -> FamilyIR:
    return family


@dataclass(frozen=True)
class Mutation:
    """A compiler that lacks one thing: a step of the target, or a kind of fact."""

    name: str
    target: Callable[[Target], Target] = _same_target
    facts: Callable[[FamilyIR], FamilyIR] = _same_facts


NOTHING = Mutation("nothing")


def _without_step(rule: str) -> Mutation:
    return Mutation(rule, target=lambda t: replace(t, steps=tuple(s for s in t.steps if s.rule.id != rule)))


def _without_norms(scale: NormScale) -> Mutation:
    return Mutation(
        f"norm: {scale.name.lower()}",
        facts=lambda f: replace(f, norms=tuple(n for n in f.norms if n.scale is not scale)),
    )


def _without_rotaries(style: RotaryStyle) -> Mutation:
    return Mutation(
        f"rotary: {style.name.lower()}",
        facts=lambda f: replace(f, rotaries=tuple(r for r in f.rotaries if r.style is not style)),
    )


RULES: tuple[Mutation, ...] = tuple(_without_step(step.rule.id) for step in QEFF.steps)
NORMS: tuple[Mutation, ...] = tuple(_without_norms(scale) for scale in NormScale)
ROTARIES: tuple[Mutation, ...] = tuple(_without_rotaries(style) for style in RotaryStyle)
MUTATIONS: dict[str, Mutation] = {m.name: m for m in (*RULES, *NORMS, *ROTARIES)}


@cache
def recorded() -> tuple[Compiled, ...]:
    """What the manifest says of each generated file, the shortest text first."""
    found = manifest.read(GENERATED / manifest.NAME)
    assert found is not None, "nothing was generated"
    entries = [e.compiled for (target, _), e in found.entries.items() if target == QEFF.name and e.output]
    return tuple(sorted(entries, key=lambda c: (len(written(c.stem)), c.stem)))


def file_of(family: str) -> Compiled:
    """The generated file that serves a family."""
    return next(c for c in recorded() if any(f.model_type == family for f in c.generated))


def written(stem: str) -> str:
    """The generated file's text, as it is on disk."""
    return (GENERATED / QEFF.name / f"{stem}.py").read_text("utf-8")


@cache
def _recognized(path: str) -> tuple[UpstreamModule, FamilyIR]:
    module = UpstreamModule(path, installed().text(path))
    heads = next(tuple((f.model_type, f.head) for f in c.generated) for c in recorded() if c.path == path)
    return module, recognize(module, heads)


def text_of(path: str, mutation: Mutation) -> str:
    """One upstream file's variants without something. Raises Refused where the compiler notices."""
    module, family = _recognized(path)
    emitted = derive(module, mutation.facts(family), mutation.target(QEFF))
    return render(emitted, *shared_functions(emitted))


def applies(mutation: Mutation, compiled: Compiled) -> bool:
    """Whether the file's variants use what the mutation takes away."""
    if mutation in RULES:
        return any(mutation.name in rules for _, rules in compiled.rules)
    _, family = _recognized(compiled.path)
    return mutation.facts(family) != family


@contextmanager
def in_place_of(stem: str, text: str) -> Iterator[types.ModuleType]:
    """The text as the generated module, for everyone who imports it or holds its name."""
    name = f"{PACKAGE}.{stem}"
    package = importlib.import_module(PACKAGE)
    before, attribute = sys.modules.pop(name, None), package.__dict__.get(stem)
    with tempfile.TemporaryDirectory(prefix="regraft-mutant-") as folder:
        path = Path(folder) / f"{stem}.py"
        path.write_text(text, "utf-8")  # an export reads the texts that made it
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
            setattr(package, stem, module)
            yield module
        finally:
            del sys.modules[name]
            package.__dict__.pop(stem, None)
            if before is not None:
                sys.modules[name] = before
            if attribute is not None:
                setattr(package, stem, attribute)
