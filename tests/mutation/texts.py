"""Variants as the compiler would write them without something, and a way to run them.

The generated tree is left alone: the text is compiled in memory, and takes the generated module's place in this process
for as long as a context lasts.
"""

import importlib
import importlib.util
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from mutants import NOTHING, Mutation

import generated
from codegen.derive import derive
from codegen.driver import Compiled
from codegen.emit import manifest
from codegen.emit.module import render
from codegen.ir import FamilyIR
from codegen.recognize.family import recognize
from codegen.shared import shared_functions
from codegen.source import installed
from codegen.upstream import UpstreamModule

GENERATED = Path(next(iter(generated.__path__)))


@cache
def recorded(target: str) -> tuple[Compiled, ...]:
    """What the manifest says of each upstream file, the shortest variants first; files without any come first."""
    found = manifest.read(GENERATED / manifest.NAME)
    assert found is not None, "nothing was generated"
    entries = [e.compiled for (name, _), e in found.entries.items() if name == target]
    return tuple(sorted(entries, key=lambda c: (len(written(target, c)), c.stem)))


def families_of(compiled: Compiled) -> tuple[str, ...]:
    """The model types that a file serves, or where it serves none, would."""
    return tuple(f.model_type for f in compiled.generated) or tuple(f.model_type for f, _ in compiled.refused)


@cache
def file_of(target: str, family: str) -> Compiled:
    """The file that serves a family, or would."""
    return next(c for c in recorded(target) if family in families_of(c))


def head_of(target: str, family: str) -> str:
    """A family's head class."""
    compiled = file_of(target, family)
    every = (*compiled.generated, *(f for f, _ in compiled.refused))
    return next(f.head for f in every if f.model_type == family)


def written(target: str, compiled: Compiled) -> str:
    """The generated file's text, as it is on disk; empty where all its families are refused."""
    return (GENERATED / target / f"{compiled.stem}.py").read_text("utf-8") if compiled.generated else ""


@cache
def facts_of(target: str, family: str) -> tuple[UpstreamModule, FamilyIR]:
    """What is recognized in the family's file. Raises Refused."""
    compiled = file_of(target, family)
    module = UpstreamModule(compiled.path, installed().text(compiled.path))
    return module, recognize(module, tuple((name, head_of(target, name)) for name in families_of(compiled)))


@cache
def text_of(family: str, mutation: Mutation) -> str:
    """One file's variants without something. Raises Refused where the compiler notices."""
    module, facts = facts_of(mutation.of.name, family)
    emitted = derive(module, mutation.facts(facts), mutation.target(mutation.of))
    return render(emitted, *shared_functions(emitted))


def applies(mutation: Mutation, family: str) -> bool:
    """Whether a family's variants have what the mutation takes away, or, with `lifts`, would be there with it."""
    compiled = file_of(mutation.of.name, family)
    if mutation.rule:
        return any(mutation.rule in rules for _, rules in compiled.rules)
    if mutation.lifts:
        return any(d.rule == mutation.lifts for _, diagnostics in compiled.refused for d in diagnostics)
    return bool(compiled.generated) and mutation.touches(facts_of(mutation.of.name, family)[1])


def makes_a_difference(family: str, mutation: Mutation) -> bool:
    """Whether the text that the compiler writes without something is another than the one with it."""
    return text_of(family, mutation) != written(mutation.of.name, file_of(mutation.of.name, family))


@contextmanager
def in_place(family: str, mutation: Mutation) -> Iterator[types.ModuleType]:
    """The mutant's text as the generated module, for everyone who imports it or holds its name. Raises Refused."""
    stem = file_of(mutation.of.name, family).stem
    text = text_of(family, mutation)
    assert makes_a_difference(family, mutation) is (mutation not in NOTHING.values()), f"{mutation.name} in {stem}"
    package_name = f"generated.{mutation.of.name}"
    name = f"{package_name}.{stem}"
    package = importlib.import_module(package_name)
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
            assert importlib.import_module(name) is module
        finally:
            del sys.modules[name]
            package.__dict__.pop(stem, None)
            if before is not None:
                sys.modules[name] = before
            if attribute is not None:
                setattr(package, stem, attribute)
