"""Checks on what was derived, before any of it is written: rules say what they change, this what none may do.

What the engine does not have must be gone, upstream's callers must still be able to call what is overridden, and the
text must be Python. Which names are gone is the target's data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import libcst as cst

from codegen.diagnostics import Diagnostic, Refused, Span
from codegen.syntax import find
from codegen.upstream import UpstreamModule

LEFTOVER = "verify/leftover"
OVERRIDE = "verify/override"
SIGNATURE = "verify/signature"
SYNTAX = "verify/syntax"

_REPORT = (
    "this is an error of a rule, not of upstream's file; `regraft inspect` names the rules that changed the method"
)

Derived = tuple[str, cst.FunctionDef]
"""``Class.method`` or ``function`` as upstream names it, and the node that takes its place."""


def problems(module: UpstreamModule, derived: Iterable[Derived], gone: Mapping[str, str]) -> list[Diagnostic]:
    """Everything that is wrong with derived methods and functions, in their order. ``gone``: name -> why."""
    checks: tuple[Callable[[UpstreamModule, str, cst.FunctionDef, Mapping[str, str]], Iterator[Diagnostic]], ...] = (
        _leftovers,
        _signature,
    )
    return [problem for where, node in derived for check in checks for problem in check(module, where, node, gone)]


def checked_text(path: str, text: str) -> str:
    """The text as it is. Raises Refused when Python cannot compile it."""
    try:
        compile(text, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise Refused(Diagnostic(Span(path), SYNTAX, "a variant that compiles", str(error), _REPORT)) from None
    return text


def _leftovers(
    module: UpstreamModule, where: str, node: cst.FunctionDef, gone: Mapping[str, str]
) -> Iterator[Diagnostic]:
    present = {name.value for name in find(node, cst.Name)}
    for name in sorted(present & gone.keys()):
        yield Diagnostic(module.span(where), LEFTOVER, f"no {name} in a variant", f"it is in {where}", gone[name])


def _signature(
    module: UpstreamModule, where: str, node: cst.FunctionDef, gone: Mapping[str, str]
) -> Iterator[Diagnostic]:
    """What upstream's callers pass, by position or by name, must still be taken, but for what the target drops."""
    owner, _, name = where.rpartition(".")
    method = module.method(owner, name) if owner else None
    upstream = module.functions.get(name) if not owner else method.node if method is not None else None
    if upstream is None:
        expected = f"overrides of methods of {owner} or its bases" if owner else "functions of the module"
        yield Diagnostic(module.span(owner), OVERRIDE, expected, f"{where}, which upstream does not have", _REPORT)
        return
    before, after = upstream.params, node.params
    if before is after:
        return
    place = module.span(where)
    kept = [name for name in _positional(before) if name not in gone]
    taken = _positional(after)
    if taken[: len(kept)] != kept:
        expected = f"parameters that begin with upstream's: {', '.join(kept)}"
        yield Diagnostic(place, SIGNATURE, expected, f"{', '.join(taken)} in {where}", _REPORT)
    lost = [p.name.value for p in before.kwonly_params if p.name.value not in {*_by_name(after), *gone}]
    lost += [f"**{before.star_kwarg.name.value}"] if before.star_kwarg is not None and after.star_kwarg is None else []
    if lost:
        yield Diagnostic(place, SIGNATURE, f"{', '.join(lost)} as upstream has it", f"none in {where}", _REPORT)
    optional = _optional(before)
    required = [name for name in _by_name(after) if name not in _optional(after)]
    new = [name for name in required if name in optional or name not in _by_name(before)]
    if new:
        expected = "parameters without a default only where upstream has none"
        yield Diagnostic(place, SIGNATURE, expected, f"{', '.join(new)} in {where}", _REPORT)


def _positional(parameters: cst.Parameters) -> list[str]:
    return [p.name.value for p in (*parameters.posonly_params, *parameters.params)]


def _by_name(parameters: cst.Parameters) -> list[str]:
    return [*_positional(parameters), *(p.name.value for p in parameters.kwonly_params)]


def _optional(parameters: cst.Parameters) -> set[str]:
    every = (*parameters.posonly_params, *parameters.params, *parameters.kwonly_params)
    return {p.name.value for p in every if p.default is not None}
