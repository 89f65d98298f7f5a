"""How wide the weights are that experts are handed: one for each choice of a token, or one for each expert there is.

Read from where they come from: what ``topk`` or ``gather`` yields has a column for each choice, what ``scatter`` yields
one for each expert. Anything else is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

import libcst as cst

from codegen.recognize.calls import bound_to, callees, calls_of
from codegen.recognize.carriers import bound_by_loops
from codegen.syntax import dotted, find, self_attribute, walk
from codegen.upstream import Method, UpstreamModule

CHOOSES = frozenset({"topk", "gather"})
SPREADS = frozenset({"scatter", "scatter_"})
KEEPS = frozenset({"to", "type_as", "float", "softmax", "sigmoid", "cat", "concat"})  # what is wide stays wide
DEPTH = 4  # calls into other methods that are followed

Binding = tuple[cst.CSTNode, cst.BaseExpression, int | None]  # where, to what, and which element of it


@dataclass(frozen=True)
class Origin:
    """Where it is decided how wide a value is. ``chosen``: one column for each choice; false where it is not known."""

    chosen: bool
    where: str
    node: cst.CSTNode


def origins(module: UpstreamModule, classes: tuple[str, ...], cls: str, parameter: str) -> list[Origin]:
    """What a parameter of ``cls.forward`` comes from, for every call in ``classes``; one that is not known for a
    parameter that the method binds anew."""
    forward = module.method(cls, "forward")
    if forward is None:
        return []
    bound_anew = [line for line, _ in _lines(forward.node) if any(True for _ in _bound(line, parameter))]
    if bound_anew:
        return [Origin(False, f"{forward.owner}.{forward.name}", bound_anew[0])]
    found = []
    for caller, method, call in calls_of(module, classes, cls):
        argument = bound_to(call, forward.node).get(parameter)
        origin = _Values(module, caller, method).origin(argument.value, None, call) if argument is not None else None
        found.append(origin or Origin(False, f"{method.owner}.{method.name}", call))
    return found


@dataclass(frozen=True)
class _Values:
    """What the names of one method or function are bound to."""

    module: UpstreamModule
    cls: str
    method: Method
    depth: int = 0

    @property
    def where(self) -> str:
        return f"{self.method.owner}.{self.method.name}" if self.method.owner else self.method.name

    def origin(self, value: cst.BaseExpression, element: int | None, use: cst.CSTNode) -> Origin | None:
        """What decides the width of a value, or of one element of it; None where nothing known does.

        Both sides of an operation, and what a name is bound to in different branches, are as wide as each other, or
        upstream would not run: it is enough to know one. But one that spreads counts.
        """
        if isinstance(value, cst.Name):
            bindings = list(self._bindings(value.value, use))
            return _decisive(self.origin(bound, part, line) for line, bound, part in bindings)
        if isinstance(value, cst.BinaryOperation):
            return _decisive(self.origin(side, None, use) for side in (value.left, value.right))
        if isinstance(value, cst.IfExp):
            return _decisive(self.origin(side, element, use) for side in (value.body, value.orelse))
        if isinstance(value, cst.Tuple | cst.List):
            parts = [e.value for e in value.elements]
            return _decisive(self.origin(p, None, use) for n, p in enumerate(parts) if element is None or n == element)
        if not isinstance(value, cst.Call):
            return None
        label = value.func.attr.value if isinstance(value.func, cst.Attribute) else ""
        if label in CHOOSES | SPREADS:
            return Origin(label in CHOOSES and not element, self.where, value)
        if label in KEEPS:
            return self.origin(self._held(value), None, use)
        return _decisive(
            callee.origin(returned.value, element, returned)
            for callee in self._called(value)
            for returned in find(callee.method.node.body, cst.Return)
            if returned.value is not None
        )

    def _held(self, call: cst.Call) -> cst.BaseExpression:
        """``x`` of ``x.softmax(dim=1)`` and ``F.softmax(x, dim=1)``."""
        assert isinstance(call.func, cst.Attribute)
        library = (dotted(call.func.value) or "").split(".")[0] in self.module.imports
        return call.args[0].value if library and call.args else call.func.value

    def _called(self, call: cst.Call) -> Iterator[_Values]:
        """The methods and functions of the file that a call may run."""
        if self.depth == DEPTH:
            return
        name, attribute = dotted(call.func), self_attribute(call.func)
        own = self.module.method(self.cls, attribute) if attribute is not None else None
        if own is not None:
            yield _Values(self.module, self.cls, own, self.depth + 1)
        elif name is not None and name in self.module.functions:
            yield _Values(self.module, "", Method("", self.module.functions[name]), self.depth + 1)
        for cls in callees(self.module, self.cls, call, bound_by_loops(self.method.node)) if self.cls else ():
            forward = self.module.method(cls, "forward")
            if forward is not None:
                yield _Values(self.module, cls, forward, self.depth + 1)

    def _bindings(self, name: str, use: cst.CSTNode) -> Iterator[Binding]:
        """What a name may be bound to at a use: the bindings before it, back to one that no branch goes around."""
        before = takewhile(lambda pair: all(node is not use for node in walk(pair[0])), _lines(self.method.node))
        for line, certain in reversed(list(before)):
            found = list(_bound(line, name))
            yield from found
            if found and certain:
                return


def _lines(block: cst.CSTNode, certain: bool = True) -> Iterator[tuple[cst.CSTNode, bool]]:
    """The lines of a function in order, and whether nothing but an early end goes around each."""
    suite = getattr(block, "body", None)
    for node in [suite] if isinstance(suite, cst.SimpleStatementSuite) else getattr(suite, "body", ()):
        if isinstance(node, cst.SimpleStatementLine | cst.SimpleStatementSuite):
            yield node, certain
        elif isinstance(node, cst.BaseStatement):
            yield from _lines(node, certain and isinstance(node, cst.With))
    orelse = getattr(block, "orelse", None)
    if orelse is not None:
        yield from _lines(orelse, False)


def _bound(line: cst.CSTNode, name: str) -> Iterator[Binding]:
    """What a line binds a name to."""
    for small in line.body if isinstance(line, cst.SimpleStatementLine | cst.SimpleStatementSuite) else ():
        if isinstance(small, cst.Assign | cst.AnnAssign) and small.value is not None:
            for target in [t.target for t in small.targets] if isinstance(small, cst.Assign) else [small.target]:
                if isinstance(target, cst.Name) and target.value == name:
                    yield line, small.value, None
                for n, part in enumerate(target.elements if isinstance(target, cst.Tuple | cst.List) else ()):
                    if isinstance(part.value, cst.Name) and part.value.value == name:
                        yield line, small.value, n


def _decisive(found: Iterable[Origin | None]) -> Origin | None:
    known = [origin for origin in found if origin is not None]
    return next((o for o in known if not o.chosen), next(iter(known), None))
