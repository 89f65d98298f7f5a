"""Every rewritten and every mutated file through the compiler, and a choice of them through numbers."""

import ast
import gc
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import TypeVar

import numbers_of
import spellings
from followed import Followed, drifts, follows
from meanings import mutants
from numbers_of import Found
from variants import Verdict, compiled, compiled_original, judge, original

from codegen.targets import TARGETS
from runtime.fingerprint import definitions
from runtime.fingerprint.reliance import Reliance

Row = TypeVar("Row")


@dataclass(frozen=True)
class Respelled:
    """What one target made of one file in other words."""

    path: str
    target: str
    spelling: str
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True)
class Mutated:
    """What one target made of one file that means something else; `seen`: whether the change is semantic drift."""

    path: str
    target: str
    kind: str
    where: str
    followed: Followed
    seen: bool


def respell(path: str, names: Sequence[str] = ()) -> list[Respelled]:
    """The file in every spelling that applies to it, or in those named."""
    found = []
    for one in spellings.SPELLINGS:
        text = one.rewrite(original(path)) if not names or one.name in names else None
        for target in TARGETS if text is not None else ():
            before = compiled_original(path, target)
            if before.text is not None and text is not None:
                signatures = spellings.signatures(original(path))
                outcome = judge(before, compiled(text, path, target), one.rewrite, signatures)
                found.append(Respelled(path, target, one.name, outcome.verdict, outcome.why))
    return found


def mutate(path: str) -> list[Mutated]:
    """One mutant of the file for each kind that applies to what its variants are made of or rely on."""
    found = []
    meaning = ast.dump(ast.parse(original(path)))
    for mutant in mutants(original(path), relied(path)):
        if not _compiles(mutant.text) or ast.dump(ast.parse(mutant.text)) == meaning:
            continue
        seen = drifts(original(path), mutant.text, mutant.where)
        for target in TARGETS:
            before = compiled_original(path, target)
            if before.text is not None:
                after = compiled(mutant.text, path, target)
                signatures = spellings.signatures(original(path))
                followed = follows(before, after, mutant.text, mutant.where, signatures)
                found.append(Mutated(path, target, mutant.kind, mutant.where, followed, seen))
    return found


def relied(path: str) -> set[str]:
    """What the file's variants are derived from, and what that relies on in the file."""
    tree = ast.parse(original(path))
    roots = {name for target in TARGETS for name, _ in compiled_original(path, target).methods}
    return Reliance(definitions(tree)).of(roots)


def _compiles(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        try:
            compile(text, "mutant", "exec")
        except SyntaxError:  # a mutant may leave a `break` without its loop
            return False
    return True


def over(files: Iterable[str], one: Callable[[str], list[Row]], jobs: int) -> Iterator[Row]:
    """The rows of every file, in order, each file's made by a process of its own: its trees go with it."""
    with get_context("fork").Pool(jobs, initializer=gc.disable, maxtasksperchild=1) as pool:
        for rows in pool.imap(one, files):
            yield from rows


def trial(row: Respelled | Mutated, variant_of_original: bool = False) -> numbers_of.Trial:
    """The numbers to ask for: the row's upstream text with the variant made of it, or of the original."""
    if isinstance(row, Respelled):
        rewrite = next(s.rewrite for s in spellings.SPELLINGS if s.name == row.spelling)
        text = rewrite(original(row.path))
    else:
        made = mutants(original(row.path), relied(row.path))
        text = next(m.text for m in made if (m.kind, m.where) == (row.kind, row.where))
    assert text is not None
    source = compiled_original(row.path, row.target) if variant_of_original else compiled(text, row.path, row.target)
    assert source.text is not None
    family = source.generated[0].model_type
    return numbers_of.Trial(family, row.path, row.target, text, source.text)


def chosen(rows: Iterable[Row], group: Callable[[Row], object], each: int) -> list[Row]:
    """At most so many of each group, by the digest of what they are."""
    found: dict[object, list[Row]] = {}
    for row in sorted(rows, key=lambda row: zlib.crc32(repr(row).encode())):
        members = found.setdefault(group(row), [])
        if len(members) < each:
            members.append(row)
    return [row for members in found.values() for row in members]


def agreement(found: Found) -> str:
    """A word for what numbers say."""
    if not found.upstream:
        return "upstream fails"
    if found.agrees:
        return "agrees"
    return "stops" if found.stops else "differs"
