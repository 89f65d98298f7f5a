"""Methods through which a class is entered: ``forward``, and whatever the class that holds it calls by name."""

from __future__ import annotations

from collections.abc import Mapping

import libcst as cst

from codegen.syntax import find, self_attribute
from codegen.upstream import Method, UpstreamModule

FORWARD = "forward"


def entered_methods(module: UpstreamModule, reachable: tuple[str, ...]) -> Mapping[str, tuple[Method, ...]]:
    """Class -> the methods that run below the heads: what ``forward`` reaches, then what ``self.part.method(...)`` in
    another class reaches."""
    result: dict[str, tuple[Method, ...]] = {}
    for cls in reachable:
        result[cls] = module.reachable_methods(cls)
    changed = True
    while changed:
        changed = False
        for cls in reachable:
            submodules = module.submodules(cls)
            for method in result[cls]:
                for attribute, name in _named_calls(method.node):
                    for part in submodules.get(attribute, ()):
                        known = {m.name for m in result.get(part, ())}
                        new = tuple(m for m in module.reachable_methods(part, name) if m.name not in known)
                        if new and part in result:
                            result[part] += new
                            changed = True
    return result


def _named_calls(function: cst.FunctionDef) -> list[tuple[str, str]]:
    """``(part, method)`` of every ``self.part.method(...)``."""
    found = []
    for call in find(function.body, cst.Call):
        if isinstance(call.func, cst.Attribute):
            attribute = self_attribute(call.func.value)
            if attribute is not None:
                found.append((attribute, call.func.attr.value))
    return found
