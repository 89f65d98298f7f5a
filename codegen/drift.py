"""What changed between two releases, as plain data: per family and method upstream, per target the variant.

Compared are the methods that a variant of either release is derived from, of which the manifest has fingerprints, and
what these rely on in their modeling file and, counted apart, in what it imports, by the rules that the runtime follows
when it looks at the release that is installed (``runtime/fingerprint/dependence.py``). A family that has no variant in
either release has nothing to compare.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from codegen.diagnostics import Diagnostic
from codegen.discovery import Family
from codegen.driver import Compiled
from codegen.source import Release
from codegen.targets import TARGETS
from runtime.fingerprint import spelling
from runtime.fingerprint.dependence import Place, compared_elsewhere, together
from runtime.fingerprint.dependence import Release as Files


class Drift(Enum):
    """How a method, or all of a family's, differ upstream; ordered by how much a reader has to look at."""

    NOT_COMPARED = "not compared"  # no variant on either side, or a damaged file
    UNCHANGED = "unchanged"
    SPELLING = "spelling only"
    SEMANTIC = "semantic"
    NEW = "new"
    REMOVED = "removed"


class Outcome(Enum):
    """What becomes of a variant."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"
    NEWLY_REFUSED = "newly refused"
    NEWLY_SUPPORTED = "newly supported"
    REFUSED = "refused"  # before as after, or in a family that is new
    REMOVED = "removed"  # with its family


@dataclass(frozen=True)
class MethodDrift:
    """``name`` is ``Class.method``, ``function``, or ``Class`` for its bases, decorators and attributes."""

    name: str
    drift: Drift


@dataclass(frozen=True)
class VariantDrift:
    """``why`` holds the diagnostics of a refusal by the newer release."""

    target: str
    outcome: Outcome
    why: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True)
class FamilyDrift:
    """``upstream`` sums up the methods; NEW and REMOVED mean the family itself. ``imported`` holds what changed in
    other files that the methods rely on, as ``file:name``."""

    family: str
    path: str
    upstream: Drift
    methods: tuple[MethodDrift, ...]
    variants: tuple[VariantDrift, ...]
    imported: tuple[MethodDrift, ...] = ()

    def of(self, drift: Drift) -> tuple[str, ...]:
        return tuple(m.name for m in self.methods if m.drift is drift)

    @property
    def means_otherwise(self) -> bool:
        """Whether something that its methods say, or rely on in other files, changed in meaning."""
        return Drift.SEMANTIC in {self.upstream, _summed_up(self.imported)}

    @property
    def unexplained(self) -> bool:
        """Whether a variant changed although no method did: what it takes from elsewhere in the file has."""
        return self.upstream is Drift.UNCHANGED and any(v.outcome is Outcome.CHANGED for v in self.variants)

    @property
    def differs(self) -> bool:
        """Whether it is more than spelling."""
        turned = {Outcome.NEWLY_REFUSED, Outcome.NEWLY_SUPPORTED}
        by_upstream = self.upstream in {Drift.SEMANTIC, Drift.NEW, Drift.REMOVED}
        return (
            by_upstream or self.means_otherwise or self.unexplained or any(v.outcome in turned for v in self.variants)
        )


@dataclass(frozen=True)
class Report:
    """Every family of either release, by name."""

    before: str
    after: str
    families: tuple[FamilyDrift, ...]

    @property
    def differs(self) -> bool:
        return any(f.differs for f in self.families)

    def count(self, drift: Drift) -> int:
        return sum(f.upstream is drift for f in self.families)

    def outcomes(self, target: str) -> dict[Outcome, int]:
        """How many families of a target have each outcome; those that none has are left out."""
        found = [v.outcome for f in self.families for v in f.variants if v.target == target]
        return {outcome: found.count(outcome) for outcome in Outcome if outcome in found}

    @property
    def methods(self) -> dict[Drift, int]:
        """How many methods, each once however many families share it."""
        found = {(f.path, m.name): m.drift for f in self.families for m in f.methods}
        return {drift: list(found.values()).count(drift) for drift in Drift if drift in found.values()}

    @property
    def imported(self) -> dict[MethodDrift, tuple[str, ...]]:
        """What changed in files that modeling files import, each with the families that rely on it."""
        found: dict[MethodDrift, list[str]] = {}
        for f in self.families:
            for one in f.imported:
                found.setdefault(one, []).append(f.family)
        return {one: tuple(found[one]) for one in sorted(found, key=lambda m: (m.drift is Drift.SPELLING, m.name))}

    def with_outcome(self, outcome: Outcome) -> list[tuple[FamilyDrift, VariantDrift]]:
        return [(f, v) for f in self.families for v in f.variants if v.outcome is outcome]

    def as_dict(self) -> dict[str, object]:
        return {
            "from": self.before,
            "to": self.after,
            "differs": self.differs,
            "upstream": {drift.value: self.count(drift) for drift in Drift if self.count(drift)},
            "methods": {drift.value: number for drift, number in self.methods.items()},
            "variants": {t: {o.value: number for o, number in self.outcomes(t).items()} for t in TARGETS},
            "families": [
                {
                    "family": f.family,
                    "file": f.path,
                    "upstream": f.upstream.value,
                    "differs": f.differs,
                    "methods": {m.name: m.drift.value for m in f.methods},
                    "imported": {m.name: m.drift.value for m in f.imported},
                    "variants": {
                        v.target: {
                            "outcome": v.outcome.value,
                            "diagnostics": [{**d.as_dict(), "family": f.family} for d in v.why],
                        }
                        for v in f.variants
                    },
                }
                for f in self.families
            ],
        }


class Side:
    """One of the two releases, and what the compiler made of it."""

    def __init__(self, release: Release, compiled: Iterable[Compiled]) -> None:
        self.release = release
        self.compiled: dict[tuple[str, str], Compiled] = {}  # by (target, family)
        self.families: dict[str, Family] = {}
        self._refused: dict[tuple[str, str], tuple[Diagnostic, ...]] = {}
        self.files = Files(release.text_if_readable)
        for one in compiled:
            for family in one.generated:
                self.compiled[one.target, family.model_type] = one
                self.families[family.model_type] = family
            for family, diagnostics in one.refused:
                self._refused[one.target, family.model_type] = diagnostics
                self.families[family.model_type] = family

    def why_refused(self, target: str, family: str) -> tuple[Diagnostic, ...]:
        return self._refused.get((target, family), ())

    def methods_of(self, family: str) -> set[str]:
        """What the family's variants of all targets were derived from."""
        return {name for t in TARGETS if (t, family) in self.compiled for name, _ in self.compiled[t, family].methods}


def compare(before: Side, after: Side) -> Report:
    """Everything that differs between two releases, as one and the same compiler sees them."""
    names = sorted({*before.families, *after.families})
    known: dict[tuple[Place, Place], Drift] = {}  # several families share files
    families = tuple(_family(before, after, name, known) for name in names)
    return Report(before.release.version, after.release.version, families)


def _family(before: Side, after: Side, name: str, known: dict[tuple[Place, Place], Drift]) -> FamilyDrift:
    old, new = before.families.get(name), after.families.get(name)
    variants = tuple(_variant(before, after, target, name) for target in TARGETS)
    if new is None:
        assert old is not None
        return FamilyDrift(name, old.path, Drift.REMOVED, (), variants)
    if old is None:
        return FamilyDrift(name, new.path, Drift.NEW, (), variants)
    compared: list[MethodDrift] = []
    changed: list[MethodDrift] = []
    ours, theirs = before.files.file(old.path), after.files.file(new.path)
    if ours is not None and theirs is not None:
        roots = before.methods_of(name) | after.methods_of(name)
        used = ours.reliance.of(roots), theirs.reliance.of(roots)
        for method in sorted(set().union(*used)):
            drift = _between(before, after, (old.path, method), (new.path, method), known)
            compared.append(MethodDrift(method, drift))
        led_to = before.files.parts(ours.imports(used[0])), after.files.parts(theirs.imports(used[1]))
        meant = compared_elsewhere(after.files, *led_to)
        changed += [MethodDrift(name, _ELSEWHERE[how]) for name, how in meant.items()]
        for name in sorted(together(led_to[0]).keys() & together(led_to[1]).keys() - meant.keys()):
            path, _, one = name.partition(":")
            if "[" not in one and _between(before, after, (path, one), (path, one), known) is Drift.SPELLING:
                changed.append(MethodDrift(name, Drift.SPELLING))
    changed.sort(key=lambda one: one.name)
    return FamilyDrift(name, new.path, _summed_up(compared), tuple(compared), variants, tuple(changed))


_ELSEWHERE = {"changed in meaning": Drift.SEMANTIC, "new": Drift.NEW, "gone": Drift.REMOVED}


def _between(before: Side, after: Side, old: Place, new: Place, known: dict[tuple[Place, Place], Drift]) -> Drift:
    """What became of one definition between the releases."""
    if (old, new) not in known:
        ours, theirs = before.files.file(old[0]), after.files.file(new[0])
        one = None if ours is None else ours.definitions.get(old[1])
        other = None if theirs is None else theirs.definitions.get(new[1])
        if ours is None or one is None:
            known[old, new] = Drift.NEW
        elif theirs is None or other is None:
            known[old, new] = Drift.REMOVED
        elif spelling(one, ours.text) == spelling(other, theirs.text):
            known[old, new] = Drift.UNCHANGED
        else:
            same = ours.fingerprint(old[1]) == theirs.fingerprint(new[1])
            known[old, new] = Drift.SPELLING if same else Drift.SEMANTIC
    return known[old, new]


def _summed_up(compared: Iterable[MethodDrift]) -> Drift:
    found = {m.drift for m in compared}
    if not found:
        return Drift.NOT_COMPARED
    if found & {Drift.SEMANTIC, Drift.NEW, Drift.REMOVED}:
        return Drift.SEMANTIC
    return Drift.SPELLING if Drift.SPELLING in found else Drift.UNCHANGED


def _variant(before: Side, after: Side, target: str, name: str) -> VariantDrift:
    old, new = before.compiled.get((target, name)), after.compiled.get((target, name))
    if name not in after.families:
        return VariantDrift(target, Outcome.REFUSED if old is None else Outcome.REMOVED)
    if new is None:
        outcome = Outcome.REFUSED if old is None else Outcome.NEWLY_REFUSED
        return VariantDrift(target, outcome, after.why_refused(target, name))
    if old is None:
        return VariantDrift(target, Outcome.NEWLY_SUPPORTED)
    return VariantDrift(target, Outcome.UNCHANGED if old.text == new.text else Outcome.CHANGED)
