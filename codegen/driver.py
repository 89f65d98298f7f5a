"""The pipeline, readable in one place: a release's text in, the text of a target's modules out. Writes nothing."""

from __future__ import annotations

import ast
import gc
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar

from codegen.derive import EmittedModule, derive
from codegen.deviations import REFUSED
from codegen.diagnostics import SOURCE, Diagnostic, InputError, MissingSourceError, Refused, SourceError, Span
from codegen.discovery import Family
from codegen.emit.module import render
from codegen.ir import FamilyIR
from codegen.recognize.family import recognize
from codegen.recognize.switches import config_reads, config_switches
from codegen.shared import shared_functions
from codegen.source import PACKAGE, Release
from codegen.targets import TARGETS
from codegen.targets.base import Target
from codegen.upstream import UpstreamModule
from codegen.verify import checked_text
from runtime.fingerprint.beside import place
from runtime.fingerprint.dependence import File, Import, Parts
from runtime.fingerprint.dependence import Release as Imported

MASK_BUILDERS = "masking_utils.py"
CAUSAL = "is_causal"

Result = TypeVar("Result")

Helpers = Mapping[str, tuple[str, ...]]  # imported function -> fields it reads of a config given to it whole
Heads = tuple[tuple[str, str], ...]  # (model type, head class)
Work = tuple[str, str, tuple[Family, ...], tuple[str, ...], Helpers, str]  # arguments of `_guarded`


def mask_helpers(release: Release) -> Helpers:
    """What upstream's mask builders read of the configuration; empty for a release that has none.

    Raises InputError when the file is damaged.
    """
    try:
        return config_reads(ast.parse(release.text(MASK_BUILDERS)))
    except MissingSourceError:
        return {}
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{MASK_BUILDERS} of {release.version} does not parse: {error}") from None


@dataclass(frozen=True)
class Compiled:
    """What came of one upstream file for one target; plain data that can cross processes."""

    path: str
    target: str
    generated: tuple[Family, ...]  # the families the text serves
    refused: tuple[tuple[Family, tuple[Diagnostic, ...]], ...]
    text: str | None = None
    rules: tuple[tuple[str, tuple[str, ...]], ...] = ()  # upstream class or function -> rules that changed it
    methods: tuple[tuple[str, str], ...] = ()  # upstream method that it was derived from -> fingerprint
    relied_on: tuple[tuple[str, str], ...] = ()  # what these rely on in their file -> fingerprint
    imports: tuple[Import, ...] = ()  # what all of them name that is from other files
    imported: tuple[tuple[str, Parts], ...] = ()  # those of the imports that count, by key -> what they lead to
    switches: tuple[str, ...] = ()  # config fields that the derived code branches on

    @property
    def stem(self) -> str:
        return self.path.rsplit("/", 1)[-1].removesuffix(".py")

    @property
    def damaged(self) -> bool:
        """Whether a family is refused for what the file is, not for what it says."""
        return any(d.rule == SOURCE for _, diagnostics in self.refused for d in diagnostics)


def compile_files(
    release: Release,
    wanted: Mapping[Family, Sequence[str]],
    jobs: int = 1,
    done: Callable[[Compiled], None] = lambda _: None,
) -> list[Compiled]:
    """Every upstream file that defines one of the families, for the targets named, in the order of paths and targets.
    ``done`` hears of each as it is finished.

    A file that cannot be read refuses its families, an error of the compiler those of the file at hand; the others go
    on. Raises InputError when the system ends a process.
    """
    by_path: dict[str, list[Family]] = {}
    for family in sorted(wanted):
        by_path.setdefault(family.path, []).append(family)
    helpers = mask_helpers(release)
    work: list[Work] = []
    results: list[Compiled] = []
    for path, members in by_path.items():
        targets = tuple(dict.fromkeys(target for family in members for target in wanted[family]))
        try:
            work.append((release.text(path), path, tuple(members), targets, helpers, release.package))
        except SourceError as error:
            for target in targets:
                results.append(Compiled(path, target, (), tuple((f, (error.diagnostic,)) for f in members)))
                done(results[-1])
    for compiled in in_processes(_guarded, work, jobs):
        for one in compiled:
            done(one)
            results.append(one)
    return sorted(results, key=lambda c: (c.path, c.target))


def with_imported(release: Release, compiled: Iterable[Compiled]) -> Iterator[Compiled]:
    """Each with the fingerprints of what its upstream file imports from others of the release."""
    imported = Imported(release.text_if_readable)
    for one in compiled:
        yield replace(one, imported=tuple(imported.parts(one.imports).items()))


def in_processes(function: Callable[..., Result], work: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[Result]:
    """What the function makes of each tuple of arguments, in their order. Raises InputError when the system ends a
    process."""
    if jobs <= 1 or len(work) <= 1:
        yield from (function(*item) for item in work)
        return
    pool = ProcessPoolExecutor(max_workers=jobs, initializer=_start_process)
    try:
        yield from pool.map(function, *zip(*work, strict=True), chunksize=2)
    except BrokenProcessPool:
        raise InputError("a compiling process was ended by the system (out of memory?); try --jobs 1") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C goes to every process of the terminal; one is to say so
    gc.disable()


@contextmanager
def without_cycles() -> Iterator[None]:
    """Leaves out looking for cycles: syntax trees are millions of small objects and have none, and each look at them
    all takes as long as parsing them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _guarded(
    text: str, path: str, families: tuple[Family, ...], targets: tuple[str, ...], helpers: Helpers, package: str
) -> tuple[Compiled, ...]:
    """One file for all targets, with an error of the compiler turned into a refusal of the families at hand."""
    try:
        module = UpstreamModule(path, text, package)
    except Refused as error:
        return tuple(Compiled(path, t, (), tuple((f, error.diagnostics) for f in families)) for t in targets)
    except Exception as error:
        return tuple(_failed(path, families, t, error) for t in targets)
    facts = _Facts(module)
    return tuple(_guarded_target(facts, families, target, helpers) for target in targets)


class _Facts:
    """What is recognized in a file, each head once for all targets."""

    def __init__(self, module: UpstreamModule) -> None:
        self.module = module
        self._known: dict[Heads, FamilyIR | Refused] = {}
        self._switches: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._file = File(place(module.package, module.path), module.text, module.ast)

    def of(self, heads: Heads) -> FamilyIR:
        """Raises Refused, for every target the same."""
        if heads not in self._known:
            try:
                self._known[heads] = recognize(self.module, heads)
            except Refused as error:
                self._known[heads] = error
        found = self._known[heads]
        if isinstance(found, Refused):
            raise found
        return found

    def switches(self, classes: tuple[str, ...], helpers: Helpers) -> tuple[str, ...]:
        """Fields that steer the classes. ``is_causal`` is not one: a causal LM's masks are causal."""
        if classes not in self._switches:
            found = config_switches(self.module.ast, classes, (), helpers)
            self._switches[classes] = tuple(sorted({s.field for s in found if s.kind.steers and s.field != CAUSAL}))
        return self._switches[classes]

    def dependence(
        self, methods_read: Iterable[str]
    ) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...], tuple[Import, ...]]:
        """The methods that variants were derived from, what these rely on in the file, and what all of them import."""
        roots = {name for name in methods_read if name in self._file.definitions}
        all_of_it = self._file.relied_on(roots)
        derived = tuple(item for item in all_of_it.items() if item[0] in roots)
        relied_on = tuple(item for item in all_of_it.items() if item[0] not in roots)
        return derived, relied_on, self._file.imports(all_of_it)


def _guarded_target(facts: _Facts, families: tuple[Family, ...], target_name: str, helpers: Helpers) -> Compiled:
    try:
        return _compile(facts, families, TARGETS[target_name], helpers)
    except Exception as error:
        return _failed(facts.module.path, families, target_name, error)


def _failed(path: str, families: tuple[Family, ...], target_name: str, error: Exception) -> Compiled:
    found = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    help = "this is an error of the compiler, not of the file; report it with the file's name and release"
    refusal = Diagnostic(Span(path), "compiler", "a variant or a refusal", found, help)
    return Compiled(path, target_name, (), tuple((f, (refusal,)) for f in families))


def compile_text(
    text: str,
    path: str,
    families: tuple[Family, ...],
    target_name: str,
    helpers: Helpers = MappingProxyType({}),
    package: str = PACKAGE,
) -> Compiled:
    """One upstream file: heads that can be derived go into one text; the others carry their diagnostics."""
    try:
        module = UpstreamModule(path, text, package)
    except Refused as error:
        return Compiled(path, target_name, (), tuple((f, error.diagnostics) for f in families))
    return _compile(_Facts(module), families, TARGETS[target_name], helpers)


def _compile(facts: _Facts, families: tuple[Family, ...], target: Target, helpers: Helpers) -> Compiled:
    module = facts.module
    path, target_name = module.path, target.name
    refused: list[tuple[Family, tuple[Diagnostic, ...]]] = []
    accepted: list[Family] = []
    alone: dict[str, EmittedModule | Refused] = {}  # by head class: types often share one
    for family in families:
        declared = REFUSED.get(family.model_type)
        if declared is not None and target_name in declared.targets:
            where = module.span(f"{family.head}.forward")
            known = Diagnostic(
                where, "deviation", "a variant that agrees with upstream", declared.reason, declared.until
            )
            refused.append((family, (known,)))
            continue
        if family.head not in alone:
            try:
                alone[family.head] = derive(module, facts.of(((family.model_type, family.head),)), target)
            except Refused as error:
                alone[family.head] = error
        outcome = alone[family.head]
        if isinstance(outcome, Refused):
            refused.append((family, outcome.diagnostics))
        else:
            accepted.append(family)
    if not accepted:
        return Compiled(path, target_name, (), tuple(refused))
    try:
        emitted = _together(facts, accepted, alone, target)
        rendered = checked_text(path, render(emitted, *shared_functions(emitted)))
    except Refused as error:
        return Compiled(path, target_name, (), (*refused, *((f, error.diagnostics) for f in accepted)))
    return Compiled(
        path,
        target_name,
        tuple(accepted),
        tuple(refused),
        rendered,
        (
            *((v.upstream, tuple(r.id for r in v.rules)) for v in emitted.variants),
            *((f.node.name.value, tuple(r.id for r in f.rules)) for f in emitted.functions),
        ),
        *facts.dependence(emitted.methods_read),
        switches=facts.switches(emitted.family.reachable, helpers),
    )


def _together(
    facts: _Facts, accepted: list[Family], alone: dict[str, EmittedModule | Refused], target: Target
) -> EmittedModule:
    """One module for all accepted families; what was derived for the only head is not derived again."""
    heads = tuple((f.model_type, f.head) for f in accepted)
    first = alone[accepted[0].head]
    if len({head for _, head in heads}) == 1 and isinstance(first, EmittedModule):
        return replace(first, family=replace(first.family, heads=heads))
    return derive(facts.module, facts.of(heads), target)
