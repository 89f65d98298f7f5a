"""Counted positions that a line hands on: position_ids goes there already; part of ``qeff/position-default``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import libcst as cst

from codegen.recognize.calls import bound_to
from codegen.recognize.carriers import bound_by_loops, is_cache_update
from codegen.recognize.counted import Place, called_places
from codegen.recognize.lengths import Lengths
from codegen.rules.base import Edit, Site
from codegen.rules.qeff.mask_builder import factory_names
from codegen.syntax import assignment, code, every_statement, find


def addresses(function: cst.FunctionDef) -> set[int]:
    """Upstream's own addresses of a cache write, ``<cache>.update(key, value, layer_idx, {...})``, and the tables that
    are given there by name: what another rule drops."""
    given = [arg for call in find(function.body, cst.Call) if is_cache_update(call) for arg in call.args[3:]]
    named = {arg.value.value for arg in given if isinstance(arg.value, cst.Name)}
    tables = [
        bound[1]
        for line in every_statement(function.body)
        if named and (bound := assignment(line)) is not None and code(bound[0]) in named
    ]
    return {id(arg) for arg in given} | {id(table) for table in tables if isinstance(table, cst.Dict)}


def not_handed_on(
    site: Site, line: cst.BaseStatement, lengths: Lengths, counted: Mapping[Place, frozenset[str]]
) -> list[Edit]:
    """Takes counted positions out of a line's calls of carriers, own methods and mask factories, and out of a table of
    keywords for a factory. ``counted``: which parameters of each method hold such positions."""
    factories, _ = factory_names(site.function)
    bound = assignment(line)
    if bound is not None and isinstance(bound[1], cst.Dict):
        return _out_of_table(site.function, code(bound[0]), bound[1], factories, lengths)
    carriers = tuple(c.name for c in site.family.carriers)
    loops = bound_by_loops(site.function)
    edits: list[Edit] = []
    for call in find(line, cst.Call):
        given = [arg for arg in call.args if not arg.star and lengths.is_counted(arg.value)]
        if not given:
            continue
        if code(call.func) in factories:
            optional = {id(arg) for arg in given if arg.keyword is not None}
            dropped = given if len(optional) == len(given) else []
        else:
            places = called_places(site.module, site.cls, call, loops, carriers)
            dropped, optional = _unread(site, call, given, places, counted)
        if dropped:
            gone = {id(arg) for arg in dropped}
            lengths.ignored |= gone
            args = [
                arg.with_changes(value=cst.Name("None")) if id(arg) in gone else arg
                for arg in call.args
                if id(arg) not in gone & optional
            ]
            edits.append(
                Edit(call, call.with_changes(args=[a.with_changes(comma=cst.MaybeSentinel.DEFAULT) for a in args]))
            )
    return edits


def _unread(
    site: Site,
    call: cst.Call,
    given: Sequence[cst.Arg],
    places: Sequence[Place],
    counted: Mapping[Place, frozenset[str]],
) -> tuple[list[cst.Arg], set[int]]:
    """The arguments that no method which the call may run reads any more, and the ids of those that can be left out."""
    dropped: list[cst.Arg] = []
    optional: set[int] = set()
    methods = [m for cls, name in places if (m := site.module.method(cls, name)) is not None]
    for arg in given if methods else ():
        labels = [next((n for n, a in bound_to(call, m.node).items() if a is arg), "") for m in methods]
        required = [[p.name.value for p in m.node.params.params if p.default is None] for m in methods]
        if all(label in counted.get(place, ()) for place, label in zip(places, labels, strict=True)):
            dropped.append(arg)
            if arg.keyword is not None and not any(n in r for n, r in zip(labels, required, strict=True)):
                optional.add(id(arg))
    return dropped, optional


def _out_of_table(
    function: cst.FunctionDef, name: str, table: cst.Dict, factories: set[str], lengths: Lengths
) -> list[Edit]:
    """``{"cache_position": cache_position, ...}`` that a mask factory is given as its keywords."""
    spread = {
        code(arg.value)
        for call in find(function.body, cst.Call)
        for arg in call.args
        if arg.star == "**" and code(call.func) in factories
    }
    gone = [e for e in table.elements if isinstance(e, cst.DictElement) and lengths.is_counted(e.value)]
    if name not in spread or not gone:
        return []
    lengths.ignored |= {id(element) for element in gone}
    kept = [e.with_changes(comma=cst.MaybeSentinel.DEFAULT) for e in table.elements if e not in gone]
    return [Edit(table, table.with_changes(elements=kept))]
