"""One generated file beside its upstream file: every class and function that it derives, method by method."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from codegen.comparison.lineage import EXTRA, RUNTIME, UNEXPLAINED, lineage, steps
from codegen.comparison.rows import Row, added
from codegen.comparison.tokens import Piece, definition
from codegen.derive import AppliedEdit, EmittedModule, Variant, derive
from codegen.diagnostics import InputError, Refused
from codegen.emit.extras import class_name, ordered
from codegen.ir import FamilyIR
from codegen.recognize.family import recognize
from codegen.shared import runtime_text, shared_functions
from codegen.targets import TARGETS
from codegen.upstream import UpstreamModule
from runtime.fingerprint import methods

Definitions = Mapping[str, ast.FunctionDef | ast.ClassDef]


@dataclass(frozen=True)
class MethodView:
    """``where`` is the method or function as upstream names it, in the class that defines it; ``line`` is where it
    stands in the generated file."""

    where: str
    line: int
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class ClassView:
    """A class or function of upstream and its variant.

    ``variant`` is its name in the generated file or, of a function that the runtime has, its dotted name there.
    ``mixin`` is the runtime class in front of upstream's. ``extra`` is what the variant has and upstream has not.
    """

    upstream: str
    variant: str
    role: str
    place: str
    rules: tuple[str, ...]
    mixin: str
    methods: tuple[MethodView, ...]
    extra: tuple[MethodView, ...] = ()


@dataclass(frozen=True)
class Written:
    """A generated file: the families it serves as (model type, head class), and its text."""

    target: str
    heads: tuple[tuple[str, str], ...]
    text: str


def class_views(path: str, upstream: str, files: Sequence[Written]) -> list[list[ClassView]]:
    """Of each generated file of one upstream file the variants, in its order. ``upstream`` is the upstream file's text.

    Raises InputError when a generated file is not Python, or when this compiler does not derive it.
    """
    result = []
    recognized: dict[tuple[tuple[str, str], ...], FamilyIR] = {}
    module: UpstreamModule | None = None
    for file in files:
        name = f"{file.target}/{path.rsplit('/', 1)[-1]}"
        try:
            module = module or UpstreamModule(path, upstream)
            if file.heads not in recognized:
                recognized[file.heads] = recognize(module, file.heads)
            emitted = derive(module, recognized[file.heads], TARGETS[file.target])
        except Refused as error:
            raise InputError(f"{name} is stale: {error}; run regraft generate") from None
        try:
            result.append(list(_views(emitted, file.text)))
        except SyntaxError as error:
            raise InputError(f"{name} is not Python ({error}); see regraft check") from None
    return result


def _views(emitted: EmittedModule, written: str) -> Iterator[ClassView]:
    module, lines = emitted.module, written.split("\n")
    found = _top_level(written)
    local, shared = shared_functions(emitted)
    for function in emitted.functions:
        name = function.node.name.value
        source = written if function in local else runtime_text(shared[name])
        variant, last = (name, UNEXPLAINED) if function in local else (f"{shared[name]}.{name}", RUNTIME)
        node = _top_level(source).get(name)
        rules = tuple(rule.id for rule in function.rules)
        way = steps(
            module.functions[name], function.node, "", emitted.target.kept_decorators, _edits(emitted, "", name)
        )
        shown = []
        if isinstance(node, ast.FunctionDef):
            theirs = definition(source.split("\n"), node)
            shown = [MethodView(name, theirs.numbers[0], tuple(lineage(_upstream(module, name), way, theirs, last)))]
        yield ClassView(name, variant, "function", str(module.span(name)), rules, "", tuple(shown))
    for one in ordered(emitted):
        name = class_name(emitted.target.prefix, one.upstream)
        node = found.get(name)
        if isinstance(node, ast.ClassDef):
            yield _class(emitted, one, node, lines)


def _class(emitted: EmittedModule, variant: Variant, node: ast.ClassDef, lines: Sequence[str]) -> ClassView:
    module, kept = emitted.module, emitted.target.kept_decorators
    derived = {method.name.value: method for method in variant.methods}
    shown, extra = [], []
    for member in node.body:
        if not isinstance(member, ast.FunctionDef):
            continue
        written = definition(lines, member)
        origin = module.method(variant.upstream, member.name)
        if origin is None or member.name not in derived:
            extra.append(MethodView(f"{node.name}.{member.name}", written.numbers[0], tuple(added(written, EXTRA))))
            continue
        where = f"{origin.owner}.{member.name}"
        edits = _edits(emitted, variant.upstream, where)
        way = steps(origin.node, derived[member.name], origin.owner, kept, edits)
        shown.append(MethodView(where, written.numbers[0], tuple(lineage(_upstream(module, where), way, written))))
    rules = tuple(rule.id for rule in variant.rules)
    place = str(module.span(variant.upstream))
    mixin = variant.mixin
    return ClassView(variant.upstream, node.name, variant.role.value, place, rules, mixin, tuple(shown), tuple(extra))


def _edits(emitted: EmittedModule, cls: str, where: str) -> list[AppliedEdit]:
    return [edit for edit in emitted.edits if edit.cls == cls and edit.where == where]


def _upstream(module: UpstreamModule, where: str) -> Piece:
    return definition(module.text.split("\n"), methods(module.ast)[where])


def _top_level(text: str) -> Definitions:
    return {n.name: n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
