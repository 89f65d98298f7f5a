"""Code below a head that stands in another file: variants are derived from one.

A class or function from elsewhere that is given activations alone (a norm, an MLP, a rotary class) stays as it is. One
that takes part in caching or masking would have to be derived too.
"""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from codegen.diagnostics import Diagnostic, Span
from codegen.recognize.carriers import bound_by_loops, called_attribute, reachable_classes
from codegen.syntax import dotted, find, names, reads
from codegen.upstream import Import, UpstreamModule

RULE = "recognize/one-file"
MODELS = "transformers.models"
SHARED = frozenset({"past_key_values", "past_key_value", "layer_past", "attention_mask", "causal_mask"})


def foreign_code(module: UpstreamModule, head: str) -> list[Diagnostic]:
    """Refusals, one per class or function of another modeling file that sees the cache or the mask."""
    if head not in module.classes:
        return []
    found: dict[str, Diagnostic] = {}
    reachable = reachable_classes(module, head)
    for cls in reachable:
        if cls == head and (origin := _inherited_forward(module, cls)) is not None:
            found[cls] = _refusal(module.span(cls), f"{cls} takes its forward from {_named(origin)}")
        holds = dict(_foreign_parts(module, cls))
        for method in module.reachable_methods(cls):
            where = f"{method.owner}.{method.name}"
            loops = bound_by_loops(method.node)
            for call in find(method.node.body, cst.Call):
                attribute = called_attribute(call, loops)
                if attribute in holds and _is_handed(call):
                    found.setdefault(holds[attribute], _refusal(module.span(where, call), holds[attribute]))
            for origin in _functions(module, method.node):
                text = f"{where} uses {_named(origin)}"
                found.setdefault(origin.name, _refusal(module.span(where), text))
    return list(found.values())


def _refusal(place: Span, found: str) -> Diagnostic:
    return Diagnostic(
        place,
        RULE,
        "whatever sees the cache or the mask written in this file",
        found,
        "write it out in the file, as the converter of upstream's modular files does",
    )


def _origin(module: UpstreamModule, name: str) -> Import | None:
    """Where a name comes from, if that is a model's code: upstream's, or another file of the same package."""
    imported = module.imports.get(name.split(".")[0])
    if imported is None:
        return None
    beside = f"{module.package.split('.')[0]}."
    return imported if imported.module.startswith((f"{MODELS}.", beside)) else None


def _named(imported: Import) -> str:
    return f"{imported.original or imported.name} of {imported.module}"


def _inherited_forward(module: UpstreamModule, cls: str) -> Import | None:
    """The class of another file whose forward a class of this one inherits."""
    if module.method(cls, "forward") is not None:
        return None
    return next((o for base in module.external_bases(cls) if (o := _origin(module, base)) is not None), None)


def _foreign_parts(module: UpstreamModule, cls: str) -> Iterator[tuple[str, str]]:
    """Attributes that hold code of another file, and whose it is."""
    for attribute, classes in module.submodules(cls).items():
        for part in classes:
            if (origin := _inherited_forward(module, part)) is not None:
                yield attribute, f"{part} takes its forward from {_named(origin)}"
    for attribute, value in module.attributes(cls).items():
        for call in find(value, cst.Call):
            label = dotted(call.func)
            if label is not None and (origin := _origin(module, label)) is not None:
                yield attribute, f"{cls}.{attribute} is {_named(origin)}"


def _is_handed(call: cst.Call) -> bool:
    """Whether the cache or a mask is among the arguments, or may be."""
    return any(
        argument.star == "**"
        or (argument.keyword is not None and argument.keyword.value in SHARED)
        or bool(names(argument.value) & SHARED)
        for argument in call.args
    )


def _functions(module: UpstreamModule, function: cst.FunctionDef) -> Iterator[Import]:
    """Imported functions that are given the cache or a mask, or are handed on as a value."""
    called = {id(call.func): call for call in find(function.body, cst.Call)}
    for node in reads(function.body, module.imports.keys()):
        origin = _origin(module, node.value)
        if origin is None or (origin.original or origin.name)[:1].isupper():
            continue
        call = called.get(id(node))
        if call is None or _is_handed(call):
            yield origin
