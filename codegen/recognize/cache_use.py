"""What the model does with its cache beside ``update``: anything but its length needs a state this target has not."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Collection

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.recognize.carriers import bound_by_loops, called_attribute
from codegen.syntax import code, find, parameters, truth, walk
from codegen.upstream import UpstreamModule

KNOWN = ("update", "get_seq_length", "is_compileable", "get_max_cache_shape")  # the last two say of which kind it is
CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")
ENCODER_CACHE = "EncoderDecoderCache"
CROSS = {"is_cross_attention"}
ENCODED = {"encoder_hidden_states is not None", "key_value_states is not None"}


def unknown_uses(module: UpstreamModule, classes: tuple[str, ...]) -> list[Diagnostic]:
    """One diagnostic per class that reads or writes another attribute of a cache. Branches that only run
    for an encoder-decoder cache are left out: the engine never passes one."""
    result: dict[str, Diagnostic] = {}
    for cls in classes:
        for method in module.reachable_methods(cls):
            caches = {p for p in parameters(method.node) if p in CACHES}
            if not caches:
                continue
            where = f"{method.owner}.{method.name}"
            definition = module.definition(where)
            cross = CROSS | (_cross_flags(definition) if isinstance(definition, ast.FunctionDef) else set())
            skipped = {
                id(n)
                for branch in walk(method.node.body)
                if isinstance(branch, cst.If | cst.IfExp) and (side := _skipped(branch, cross)) is not None
                for n in walk(side)
            }
            for attribute in find(method.node.body, cst.Attribute):
                if not (isinstance(attribute.value, cst.Name) and attribute.value.value in caches):
                    continue
                if attribute.attr.value not in KNOWN and id(attribute) not in skipped:
                    result.setdefault(
                        cls,
                        Diagnostic(
                            module.span(where, attribute),
                            "recognize/cache-use",
                            "a cache that is only updated and asked for its length",
                            f"`{code(attribute)}`",
                            "convolution, recurrent and shared states have no position-addressed buffer yet",
                        ),
                    )
    return list(result.values())


def _cross_flags(function: ast.FunctionDef) -> set[str]:
    """Locals that only say whether there is an encoder's output to attend to."""
    bound = Counter(n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))
    flags = Counter(
        target.id
        for line in ast.walk(function)
        if isinstance(line, ast.Assign) and ast.unparse(line.value) in ENCODED
        for target in line.targets
        if isinstance(target, ast.Name)
    )
    return {name for name, times in flags.items() if times == bound[name]}


def _skipped(branch: cst.If | cst.IfExp, cross: Collection[str]) -> cst.CSTNode | None:
    """The side of a branch that does not run when nothing crosses over to an encoder."""
    holds = truth(branch.test, lambda part: _without_encoder(part, cross))
    return None if holds is None else branch.orelse if holds else branch.body


def _without_encoder(part: cst.BaseExpression, cross: Collection[str]) -> bool | None:
    """Whether a part of a test holds when nothing crosses over; None where ``cross`` does not say."""
    if isinstance(part, cst.Call) and code(part.func) == "isinstance" and len(part.args) == 2:
        return False if code(part.args[1].value) == ENCODER_CACHE else None
    name = part.attr.value if isinstance(part, cst.Attribute) else code(part)
    return False if name in cross else None


def unknown_receivers(module: UpstreamModule, carriers: Collection[str]) -> list[Diagnostic]:
    """One diagnostic per carrier that hands its cache to a submodule that was not found to pass it on or to write it:
    one that is built elsewhere, or that keeps another kind of state in it."""
    result: dict[str, Diagnostic] = {}
    for cls in carriers:
        held = module.submodules(cls)
        for method in module.reachable_methods(cls):
            caches = {p for p in parameters(method.node) if p in CACHES}
            loops = bound_by_loops(method.node)
            for call in find(method.node.body, cst.Call):
                attribute = called_attribute(call, loops)
                given = [a for a in call.args if isinstance(a.value, cst.Name) and a.value.value in caches]
                if attribute is None or not given or module.method(cls, attribute) is not None:
                    continue
                receivers = held.get(attribute, ())
                if not receivers or not all(r in carriers or _takes_no_cache(module, r) for r in receivers):
                    where = f"{method.owner}.{method.name}"
                    kind = "which keeps its own state" if receivers else "built elsewhere"
                    result.setdefault(
                        cls,
                        Diagnostic(
                            module.span(where, call),
                            "recognize/cache-use",
                            "the cache handed only to submodules that write keys and values, or hand it on to one",
                            f"`{code(call.func)}({code(given[0].value)} ...)`, {kind}",
                            "convolution, recurrent and shared states have no position-addressed buffer yet",
                        ),
                    )
    return list(result.values())


def _takes_no_cache(module: UpstreamModule, cls: str) -> bool:
    """A class whose forward lets the cache fall into ``**kwargs``."""
    method = module.method(cls, "forward")
    return method is not None and not set(parameters(method.node)) & set(CACHES)
