"""A whole ``generated/`` tree: what is fresh is taken from disk, the rest is compiled, all of it is rendered."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from codegen import store
from codegen.diagnostics import SOURCE, Diagnostic, InputError, SourceError
from codegen.discovery import Family, discover
from codegen.driver import Compiled, compile_files, mask_helpers, with_imported, without_cycles
from codegen.emit import coverage, manifest, verified
from codegen.emit.index import index
from codegen.source import Release
from codegen.targets import TARGETS
from runtime.fingerprint.beside import place
from runtime.fingerprint.dependence import Release as ParsedRelease
from runtime.fingerprint.dependence import compared

Records = Mapping[str, Mapping[str, verified.Record]]
"""What verification found, by target and family."""

UNREADABLE = ""  # instead of the digest of an upstream file
OWN_TEXT = '''"""Variants of this project's own models, derived by regraft. Do not edit.

``runtime.register`` with this package's name makes them known. See MANIFEST.toml and COVERAGE.md.
"""
'''
PACKAGE_TEXT = '"""Variants that regraft derived from upstream; see MANIFEST.toml and COVERAGE.md. Do not edit."""\n'


class FileState(Enum):
    FRESH = "fresh"  # what the compiler writes today
    STALE = "stale"  # written by an older compiler or from another source
    MISSING = "missing"
    ORPHANED = "orphaned"  # nothing compiles to it any more
    HAND_EDITED = "hand-edited"  # neither what was written nor what would be


@dataclass(frozen=True)
class Tree:
    """Every file of ``generated/`` by relative path, and what it came from."""

    version: str
    files: Mapping[str, str]
    compiled: tuple[Compiled, ...]
    reused: int  # upstream files taken from disk because nothing changed
    states: Mapping[str, FileState]
    before: manifest.Manifest | None
    damaged: tuple[Compiled, ...] = ()  # what came of damaged upstream files, also where an older text stays
    own: manifest.Own | None = None  # where the source is, for a package of the user's

    @property
    def written(self) -> frozenset[str]:
        """Paths that earlier runs wrote."""
        return frozenset() if self.before is None else frozenset({*_written(self.before), *_UNCHECKED})

    @property
    def owned(self) -> frozenset[str]:
        """Paths that this or the last generation wrote."""
        return frozenset(self.states)

    @property
    def is_fresh(self) -> bool:
        """Whether every file is what would be written."""
        return all(state is FileState.FRESH for state in self.states.values())

    def in_state(self, state: FileState) -> list[str]:
        return [path for path, s in self.states.items() if s is state]

    def count(self, what: str) -> dict[str, int]:
        """How many families are ``generated`` or ``refused``, by target."""
        found = dict.fromkeys(TARGETS, 0)
        for one in self.compiled:
            found[one.target] += len(one.generated if what == "generated" else one.refused)
        return found

    def newly_refused(self) -> list[tuple[str, Diagnostic]]:
        """Families that the last generation had and this one refuses, and those of damaged files; each with why. Of a
        package of the user's: those that the last generation did not refuse."""
        entries = self.before.entries.values() if self.before is not None else ()
        if self.own is not None:
            known = {(e.compiled.target, f.model_type) for e in entries for f, _ in e.compiled.refused}
            every = [(c.target, f.model_type, d) for c in self.compiled for f, d in c.refused]
            return sorted({(name, d[0]) for target, name, d in every if (target, name) not in known})
        had = {(e.compiled.target, f.model_type) for e in entries for f in e.compiled.generated}
        gone = [(f.model_type, d[0]) for c in self.compiled for f, d in c.refused if (c.target, f.model_type) in had]
        hurt = [(f.model_type, d[0]) for c in self.damaged for f, d in c.refused if d[0].rule == SOURCE]
        return sorted({*gone, *hurt})


def select(release: Release, families: Sequence[Family], names: Iterable[str]) -> list[Family]:
    """Those of a release's families that are named, or all. Raises InputError for a name that upstream's mapping, or
    the user's folder, has not, with its neighbours."""
    known = {f.model_type: f for f in families}
    chosen = []
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            whose = (
                "a type of upstream's causal-LM mapping" if release.families is None else f"one of {', '.join(known)}"
            )
            raise InputError(f"{name} is not {whose}{hint}")
        chosen.append(known[name])
    return chosen or list(families)


@without_cycles()
def build(
    release: Release,
    root: Path,
    names: Sequence[str] = (),
    jobs: int = 1,
    planned: Callable[[int], None] = lambda _: None,
    done: Callable[[Compiled], None] = lambda _: None,
    trust_manifest: bool = True,
) -> Tree:
    """Renders the tree for the families named (all when none are); the others stay as the manifest has them, also
    when it has none of them.

    The text of a damaged upstream file stays too, if it is of this release. ``planned`` hears how many files will be
    compiled, ``done`` of each. With ``trust_manifest`` off, everything is compiled again. Raises InputError for
    unusable input, StoreError for a half-written tree; touches no file.
    """
    store.check_whole(root)
    families = discover(release)
    chosen = {f.path for f in select(release, families, names)}
    past = _Past(root, manifest.read(root / manifest.NAME), manifest.compiler_digest())
    own = release.record(root)
    if past.written is not None and (past.written.own is None) != (own is None):
        whose = "an upstream release" if own is not None else "your own models"
        raise InputError(f"{root} holds variants of {whose}; name another folder with --out")
    by_path: dict[str, list[Family]] = {}
    for family in families:
        by_path.setdefault(family.path, []).append(family)
    helpers = repr(sorted(mask_helpers(release).items()))
    sources = {path: _source_digest(release, path, helpers) for path in by_path}
    compiled: list[Compiled] = []  # from this release's text
    older: list[Compiled] = []
    work: dict[Family, list[str]] = {}
    kept: list[manifest.Entry] = []
    for target in TARGETS:
        for path, members in by_path.items():
            entry = past.entry(target, path) if trust_manifest else None
            current = entry is not None and past.is_current(entry, sources[path], members)
            text = past.text(entry) if entry is not None and (current or path not in chosen) else None
            if entry is not None and text is not None:
                kept.append(entry)
                (compiled if entry.source == sources[path] else older).append(text)
            elif path in chosen or entry is not None:
                for member in members:
                    work.setdefault(member, []).append(target)
    reused = len(compiled) + len(older)
    planned(len({(family.path, target) for family, targets in work.items() for target in targets}))
    damaged: list[Compiled] = []
    for one in compile_files(release, work, jobs, done):
        damaged += [one] if one.damaged else []
        entry = past.entry(one.target, one.path) if one.damaged and past.is_of(release) else None
        text = past.text(entry) if entry is not None else None
        if entry is not None and text is not None:
            kept.append(entry)
            older.append(text)
        else:
            compiled.append(one)
    behind = past.releases(older, release)
    compiled = sorted([*with_imported(release, compiled), *older], key=lambda c: (c.target, c.path))
    sources |= {entry.compiled.path: entry.source for entry in kept}
    # what an older compiler wrote and stays makes the whole tree one that is not this compiler's
    compiler = past.compiler if past.is_current_compiler or not kept else ""
    files = _render(past, release, compiler, compiled, sources, behind, own)
    states = _states(root, files, past.written)
    return Tree(release.version, files, tuple(compiled), reused, states, past.written, tuple(damaged), own)


@dataclass(frozen=True)
class _Past:
    """What the last generation left under ``root``, and the digest of today's compiler."""

    root: Path
    written: manifest.Manifest | None
    compiler: str

    @property
    def is_current_compiler(self) -> bool:
        return self.written is not None and self.written.compiler == self.compiler

    def is_of(self, release: Release) -> bool:
        return self.written is not None and self.written.version == release.version

    def releases(self, kept: Iterable[Compiled], release: Release) -> dict[tuple[str, str], str]:
        """By target and upstream file, the releases that kept texts are of, where that is not the one at hand."""
        found = {(one.target, one.path): self.entry(one.target, one.path) for one in kept}
        return {key: e.version for key, e in found.items() if e is not None and e.version != release.version}

    def entry(self, target: str, path: str) -> manifest.Entry | None:
        return self.written.entries.get((target, path)) if self.written is not None else None

    def is_current(self, entry: manifest.Entry, source: str, members: Sequence[Family]) -> bool:
        """Whether compiling again would say the same. What came of a damaged file is looked at every time."""
        families = {*entry.compiled.generated, *(f for f, _ in entry.compiled.refused)}
        same = entry.source == source != UNREADABLE and families == set(members)
        return self.is_current_compiler and same and not entry.compiled.damaged

    def still_true(self, records: Records, release: Release, behind: Container[tuple[str, str]]) -> Records:
        """What verification found that holds for this release: a variant's text may be the same, and what it was
        compared with be another in meaning. ``behind`` are the files that stay of the release they were verified in."""
        kept = dict(records)
        parsed = ParsedRelease(release.text_if_readable)
        for (target, path), entry in self.written.entries.items() if self.written is not None else ():
            due = {f.model_type for f in entry.compiled.generated} & kept.get(target, {}).keys()
            if not due or (target, path) in behind or entry.version == release.version:
                continue
            was, file = entry.compiled, place(release.package, path)
            if compared(parsed, file, dict(was.methods), dict(was.relied_on), dict(was.imported)):
                kept[target] = {name: one for name, one in kept[target].items() if name not in due}
        return kept

    def text(self, entry: manifest.Entry) -> Compiled | None:
        """The entry with its text, None when the text on disk is not what was written."""
        if not entry.output:
            return entry.compiled
        text = _text(self.root / module_path(entry.compiled))
        if text is None or manifest.digest(text) != entry.output:
            return None
        return replace(entry.compiled, text=text)


def _source_digest(release: Release, path: str, helpers: str) -> str:
    try:
        return manifest.digest(release.text(path) + helpers)
    except SourceError:
        return UNREADABLE


def module_path(compiled: Compiled) -> str:
    """Where a compiled file's text goes, relative to ``generated/``."""
    return f"{compiled.target}/{compiled.stem}.py"


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        return ""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _render(
    past: _Past,
    release: Release,
    compiler: str,
    compiled: Sequence[Compiled],
    sources: Mapping[str, str],
    behind: Mapping[tuple[str, str], str],
    own: manifest.Own | None,
) -> dict[str, str]:
    files = {"__init__.py": PACKAGE_TEXT if own is None else OWN_TEXT}
    for one in compiled:
        if one.text is not None:
            files[module_path(one)] = one.text
    found = verified.read(past.root / verified.NAME)
    records, table = past.still_true(found, release, behind), {}
    if records != found:
        files[verified.NAME] = verified.render(records)
    for target in TARGETS:
        mine = [c for c in compiled if c.target == target]
        files[f"{target}/__init__.py"] = index(mine, target, own)
        digests = {c.path: manifest.digest(c.text) for c in mine if c.text is not None}
        table[target] = coverage.rows(mine, digests, records.get(target, {}))
    packages = {path: manifest.digest(text) for path, text in files.items() if path.endswith("__init__.py")}
    files[coverage_name()] = coverage.render(release.version, table, own)
    facts = (release.version, compiler, compiled, sources, packages, behind, own)
    same = past.written is not None and past.written.says(*facts)
    files[manifest.NAME] = past.written.text if past.written is not None and same else manifest.render(*facts)
    return files


def coverage_name() -> str:
    return "COVERAGE.md"


_UNCHECKED = frozenset({coverage_name(), manifest.NAME, verified.NAME})
"""Files of a tree that have no digest in its manifest."""


def _written(before: manifest.Manifest) -> dict[str, str]:
    """Digests of the texts that a manifest tells of, by path."""
    return {module_path(e.compiled): e.output for e in before.entries.values() if e.output} | before.packages


def _states(root: Path, files: Mapping[str, str], before: manifest.Manifest | None) -> dict[str, FileState]:
    written = {} if before is None else _written(before)
    states = {}
    for path in sorted({*files, *written}):
        now = _text(root / path)
        if path not in files:
            if now is not None:
                states[path] = FileState.ORPHANED if manifest.digest(now) == written[path] else FileState.HAND_EDITED
        elif now is None:
            states[path] = FileState.MISSING
        elif now == files[path]:
            states[path] = FileState.FRESH
        elif path in written and manifest.digest(now) != written[path]:
            states[path] = FileState.HAND_EDITED
        else:
            states[path] = FileState.STALE
    return states
