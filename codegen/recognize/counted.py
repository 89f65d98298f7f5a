"""Through which parameters positions travel that were counted from the cache's length."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import libcst as cst

from codegen.recognize.calls import bound_to, callees
from codegen.recognize.carriers import bound_by_loops
from codegen.recognize.lengths import lengths_of
from codegen.syntax import assignment, code, every_statement, find, keyword_catch_all, parameters, self_attribute
from codegen.upstream import Method, UpstreamModule

POSITIONS = "position_ids"

Place = tuple[str, str]
"""A class and one of its methods."""


@lru_cache(maxsize=2)  # the rules of one pipeline ask for every method of a file
def counted_parameters(module: UpstreamModule, carriers: tuple[str, ...]) -> Mapping[Place, frozenset[str]]:
    """The parameters, beside ``position_ids``, that hold positions counted from the cache's length: those that a method
    counts itself where they are missing, and those that come from or go to such a one, at any distance."""
    methods = {(cls, m.name): m for cls in carriers for m in module.reachable_methods(cls)}
    here = {place: counted_here(method.node) for place, method in methods.items()}
    if not any(here.values()):
        return {}
    found = {place: set(counted) for place, counted in here.items()}
    calls = [
        (place, call, targets)
        for place, method in methods.items()
        for call in find(method.node.body, cst.Call)
        if (targets := called_places(module, place[0], call, bound_by_loops(method.node), carriers))
    ]
    before = -1
    while before != (before := sum(map(len, found.values()))):
        for place, call, targets in calls:
            for target in targets:
                if target in methods:
                    _flow(call, methods[place], found[place], methods[target], found[target])
                    found[target] |= _on_in_keywords(call, methods[place], found[place] - here[place], methods[target])
    return {place: frozenset(found[place]) & frozenset(parameters(m.node)) for place, m in methods.items()}


def counted_here(function: cst.FunctionDef) -> set[str]:
    """Names that a method binds to positions counted from the cache's length, and to nothing else that reads it."""
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name) and bound[0].value != POSITIONS:
            if any(a.attr.value == "arange" for a in find(bound[1], cst.Attribute)):
                lengths = lengths_of(function)
                return lengths.positions - lengths.seen - lengths.keys - lengths.other - {POSITIONS}
    return set()


def called_places(
    module: UpstreamModule, cls: str, call: cst.Call, loops: dict[str, str], carriers: tuple[str, ...]
) -> tuple[Place, ...]:
    """The carriers' methods that a call in a method of ``cls`` may run: a submodule's forward, or one of its own."""
    own = self_attribute(call.func)
    if own is not None and module.method(cls, own) is not None:
        return ((cls, own),)
    return tuple((c, "forward") for c in callees(module, cls, call, loops) if c in carriers)


def _flow(call: cst.Call, caller: Method, given: set[str], callee: Method, taken: set[str]) -> None:
    """One call's part: what the caller hands over is counted in the callee, and the other way round. A name without a
    parameter falls into ``**kwargs``."""
    labels, own = parameters(callee.node), parameters(caller.node)
    catches = keyword_catch_all(callee.node) is not None
    for label, arg in bound_to(call, callee.node).items():
        name = arg.value.value if isinstance(arg.value, cst.Name) else ""
        if name in given and label != POSITIONS and (label in labels or catches):
            taken.add(label)
        elif label in taken and label in labels and name in own and name != POSITIONS:
            given.add(name)


def _on_in_keywords(call: cst.Call, caller: Method, given: set[str], callee: Method) -> set[str]:
    """What the caller has in its ``**kwargs`` and hands on with them."""
    spread = {code(arg.value) for arg in call.args if arg.star == "**"}
    if keyword_catch_all(caller.node) not in spread:
        return set()
    held = given - set(parameters(caller.node))
    return held if keyword_catch_all(callee.node) is not None else held & set(parameters(callee.node))
