"""Who calls whom inside one modeling file, and which argument of a call goes to which parameter."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from codegen.recognize.carriers import bound_by_loops, called_attribute
from codegen.syntax import find, parameters, self_attribute
from codegen.upstream import Method, UpstreamModule


def callees(module: UpstreamModule, cls: str, call: cst.Call, loops: dict[str, str]) -> tuple[str, ...]:
    """The classes of this file whose forward a call in a method of ``cls`` may run: ``self.x(...)``,
    ``self.x.y(...)``, ``self.x[i](...)``, or a loop variable over ``self.x``."""
    attribute = called_attribute(call, loops)
    if attribute is not None:
        return module.submodules(cls).get(attribute, ())
    if isinstance(call.func, cst.Attribute):
        outer = self_attribute(call.func.value)
        inner = call.func.attr.value
        owners = module.submodules(cls).get(outer, ()) if outer is not None else ()
        return tuple(dict.fromkeys(c for owner in owners for c in module.submodules(owner).get(inner, ())))
    return ()


def calls_of(module: UpstreamModule, classes: tuple[str, ...], wanted: str) -> Iterator[tuple[str, Method, cst.Call]]:
    """Every call in a reachable method of ``classes`` that may run the forward of ``wanted``."""
    for cls in classes:
        for method in module.reachable_methods(cls):
            loops = bound_by_loops(method.node)
            for call in find(method.node.body, cst.Call):
                if wanted in callees(module, cls, call, loops):
                    yield cls, method, call


def bound_to(call: cst.Call, function: cst.FunctionDef) -> dict[str, cst.Arg]:
    """Parameter -> argument, for the arguments that are given by position or by a known keyword."""
    labels = parameters(function)
    result: dict[str, cst.Arg] = {}
    for index, arg in enumerate(call.args):
        if arg.star:
            break
        if arg.keyword is not None:
            result[arg.keyword.value] = arg
        elif index < len(labels):
            result[labels[index]] = arg
    return result
