"""What the compiler makes of a text, and whether two variants say the same."""

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path

import spellings
from spellings import Rewrite, Signatures

from codegen.discovery import Family, discover
from codegen.driver import Compiled, _guarded
from codegen.source import PACKAGE, installed
from codegen.targets import TARGETS
from runtime.fingerprint import fingerprint, methods

ROOT = Path(__file__).parents[2]


@cache
def files() -> dict[str, tuple[Family, ...]]:
    """Upstream's modeling files that the mapping names, by path, with their families."""
    found: dict[str, list[Family]] = defaultdict(list)
    for family in discover(installed()):
        found[family.path].append(family)
    return {path: tuple(families) for path, families in found.items()}


@cache
def original(path: str) -> str:
    return installed().text(path)


@cache
def compiled_original(path: str, target: str) -> Compiled:
    return compiled(original(path), path, target)


def compiled(text: str, path: str, target: str) -> Compiled:
    """As the compiler's own process does it: an error of the compiler is a refusal by "compiler"."""
    (found,) = _guarded(text, path, files()[path], (target,), {}, PACKAGE)
    broken = [str(d) for _, diagnostics in found.refused for d in diagnostics if d.rule == "compiler"]
    if broken:
        print(broken[0], file=sys.stderr)
    return found


@cache
def paths_with_variants() -> tuple[str, ...]:
    """The files that some target has variants of."""
    return tuple(p for p in files() if any(compiled_original(p, t).text is not None for t in TARGETS))


class Verdict(Enum):
    """What became of a variant when upstream's words changed and its meaning did not."""

    SAME = "same text"
    NAMES = "same up to names"
    REFUSED = "refused"
    UNDECIDED = "undecided by text"


@dataclass(frozen=True)
class Outcome:
    verdict: Verdict
    why: str = ""


def judge(before: Compiled, after: Compiled, rewrite: Rewrite, signatures: Signatures) -> Outcome:
    """Compares the variants of a file in two spellings; `rewrite` made the one of the other, `signatures` are those of
    the file's functions.

    Variants are the same up to names if every definition has the same fingerprint, as they are or with the same
    rewrite made in both: what keeps the meaning of upstream's code keeps that of the variant's.
    """
    lost = {f.model_type for f in before.generated} - {f.model_type for f in after.generated}
    if lost:
        why = next(d for f, found in after.refused for d in found if f.model_type in lost)
        return Outcome(Verdict.REFUSED, f"{why.rule}: {why.found}")
    if {f.model_type for f in after.generated} != {f.model_type for f in before.generated}:
        return Outcome(Verdict.UNDECIDED, "newly supported")
    assert before.text is not None and after.text is not None
    if before.text == after.text:
        return Outcome(Verdict.SAME)
    differing = differences(before.text, after.text, signatures)
    if differing:
        twice = [rewrite(one.text) or one.text for one in (before, after) if one.text is not None]
        differing = differences(*twice, signatures)
    return Outcome(Verdict.UNDECIDED, ", ".join(differing)) if differing else Outcome(Verdict.NAMES)


def differences(before: str, after: str, signatures: Signatures) -> list[str]:
    """Names of what two generated texts define differently, and the statements beside definitions that differ.

    A function that one text takes from the runtime and the other writes out is compared with the runtime's.
    """
    one, other = _Text(before, signatures), _Text(after, signatures)
    defined = {*one.defined, *other.defined}
    found = {name for name in defined if one.meaning(name) != other.meaning(name)}
    both = (one.imported.keys() & other.imported.keys()) - defined
    found |= {f"import {name}" for name in both if one.imported[name] != other.imported[name]}
    return sorted(found | (one.rest ^ other.rest))


class _Text:
    """A generated text: fingerprints by qualified name, imported names with where they come from, and other
    statements. What fingerprints tell apart and nobody else can is put into one form first (`_plain`)."""

    def __init__(self, text: str, signatures: Signatures) -> None:
        tree = _plain(ast.parse(text), signatures)
        self.signatures = signatures
        self.defined = {name: fingerprint(node) for name, node in methods(tree).items()}
        self.imported: dict[str, tuple[str, str]] = {}
        self.rest: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                self.imported |= {a.asname or a.name: (node.module, a.name) for a in node.names}
            elif not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Expr, ast.Import)):
                self.rest.add(ast.unparse(node))

    def meaning(self, name: str) -> str | None:
        if name in self.defined:
            return self.defined[name]
        module, original = self.imported.get(name, ("", ""))
        if not module.startswith("runtime."):
            return None
        tree = _plain(ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")), self.signatures)
        found = methods(tree).get(original)
        return None if found is None else fingerprint(found)


def _plain(tree: ast.Module, signatures: Signatures) -> ast.Module:
    """Keywords instead of positions in calls of known functions, keywords in order of names, entries of dicts in
    order, `a < b` for `b > a`; tests that decide nothing are left out. Values of these texts' arguments may be
    evaluated in any order, and asking for a truth value does nothing."""
    spellings.name_arguments(tree, signatures)
    for part in ast.walk(tree):
        if isinstance(part, ast.Call):
            part.keywords.sort(key=lambda keyword: keyword.arg or "~")
        elif isinstance(part, ast.Dict):
            entries = sorted(zip(part.keys, part.values, strict=True), key=lambda e: ast.dump(e[1]))
            part.keys, part.values = [key for key, _ in entries], [value for _, value in entries]
        elif isinstance(part, ast.Compare) and len(part.ops) == 1:
            sides = sorted((part.left, part.comparators[0]), key=ast.dump)
            turned = spellings.TURNED.get(type(part.ops[0]))
            if turned is not None and sides[0] is not part.left:
                part.left, part.comparators, part.ops = sides[0], [sides[1]], [turned()]
        for block in ("body", "orelse"):
            statements = getattr(part, block, None)
            if isinstance(statements, list):
                setattr(part, block, [s for s in statements if not _decides_nothing(s)])
    return tree


def _decides_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and all(
        isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
        for s in (*node.body, *node.orelse)
    )
