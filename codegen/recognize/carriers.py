"""The cache's path through the model: head -> backbone -> layers -> attention, read from constructors and calls."""

from __future__ import annotations

import libcst as cst

from codegen.diagnostics import Diagnostic, Refused, damaged
from codegen.ir import Carrier, Role
from codegen.syntax import find, self_attribute
from codegen.upstream import UpstreamModule

CARRIED = ("position_ids", "batch_index", "comp_ctx_lengths")


def is_cache_update(call: cst.Call) -> bool:
    """``<cache>.update(key, value, layer_idx[, ...])``; a dict's ``update`` takes one argument."""
    return (
        isinstance(call.func, cst.Attribute)
        and call.func.attr.value == "update"
        and isinstance(call.func.value, cst.Name | cst.Attribute)
        and len(call.args) >= 3
        and all(arg.keyword is None and not arg.star for arg in call.args[:3])
    )


def reachable_classes(module: UpstreamModule, head: str) -> tuple[str, ...]:
    """The head and every class of the file that it holds, directly or not, in order of discovery."""
    found = [head]
    for name in found:
        for classes in module.submodules(name).values():
            found.extend(c for c in classes if c not in found)
    return tuple(found)


def writes_cache(module: UpstreamModule, cls: str) -> bool:
    return any(
        is_cache_update(call) for method in module.reachable_methods(cls) for call in find(method.node.body, cst.Call)
    )


def carriers(module: UpstreamModule, head: str) -> tuple[Carrier, ...]:
    """The carriers below one head, head first. Raises Refused when there is no path to a cache."""
    where = module.span(head)
    if head not in module.classes:
        raise Refused(damaged(where, f"class {head}, as upstream's mapping says", "no such class in this file"))
    if module.method(head, "forward") is None:
        raise Refused(
            Diagnostic(
                where,
                "recognize/head",
                f"{head}.forward in this file",
                "no such method",
                "the head inherits its forward from another file; compile that file's family instead",
            )
        )
    reachable = reachable_classes(module, head)
    writers = {name for name in reachable if writes_cache(module, name)}
    if not writers:
        external = _foreign_submodules(module, reachable)
        raise Refused(
            Diagnostic(
                where,
                "recognize/cache-path",
                "a class below the head that writes keys and values with <cache>.update(key, value, layer_idx)",
                f"none; {external}" if external else "none",
                "state-space, encoder-only and composite models have no key/value buffer this target can address",
            )
        )
    on_path = _on_path(module, head, writers)
    if head not in on_path:
        raise Refused(
            Diagnostic(
                where,
                "recognize/cache-path",
                f"constructor calls leading from {head} to {', '.join(sorted(writers))}",
                "no such path",
                "the backbone is built through another file (AutoModel.from_config); compile the text family instead",
            )
        )
    result = []
    for name in (c for c in reachable if c in on_path):
        calls = tuple(
            (attribute, tuple(c for c in classes if c in on_path))
            for attribute, classes in module.submodules(name).items()
            if any(c in on_path for c in classes)
        )
        result.append(Carrier(name, _role(module, name, head, writers, dict(calls)), calls))
    backbones = [c.name for c in result if c.role is Role.BACKBONE]
    below = {c for b in backbones for c in reachable_classes(module, b)}
    return tuple(
        Carrier(c.name, Role.WRAPPER, c.calls) if c.role is Role.LAYER and c.name not in below and c.name != head else c
        for c in result
    )


def _on_path(module: UpstreamModule, head: str, writers: set[str]) -> set[str]:
    result = set(writers)
    changed = True
    reachable = reachable_classes(module, head)
    while changed:
        changed = False
        for name in reachable:
            below = {c for classes in module.submodules(name).values() for c in classes}
            if name not in result and below & result:
                result.add(name)
                changed = True
    return result


def _role(module: UpstreamModule, name: str, head: str, writers: set[str], calls: dict[str, tuple[str, ...]]) -> Role:
    if name == head:
        return Role.HEAD
    if name in writers:
        return Role.ATTENTION
    return Role.BACKBONE if _loops_over(module, name, set(calls)) else Role.LAYER


def _loops_over(module: UpstreamModule, name: str, attributes: set[str]) -> bool:
    """Whether forward has a ``for`` over one of the attributes (``self.layers``)."""
    for method in module.reachable_methods(name):
        for loop in find(method.node.body, cst.For):
            if any(self_attribute(n) in attributes for n in find(loop.iter, cst.Attribute)):
                return True
    return False


def _foreign_submodules(module: UpstreamModule, reachable: tuple[str, ...]) -> str:
    for name in reachable:
        for attribute, value in module.attributes(name).items():
            for call in find(value, cst.Call):
                if isinstance(call.func, cst.Attribute) and call.func.attr.value in ("from_config", "_from_config"):
                    return f"{name}.{attribute} is built by an auto class from another file"
    return ""


def bound_by_loops(function: cst.FunctionDef) -> dict[str, str]:
    """Loop variables that run over a ``self`` attribute: ``for i, layer in enumerate(self.layers[:n])`` gives
    ``{"layer": "layers"}``. Also ``layer = self.layers[i]``."""
    result: dict[str, str] = {}
    for loop in find(function.body, cst.For):
        attributes = [a for n in find(loop.iter, cst.Attribute) if (a := self_attribute(n)) is not None]
        targets = [n.value for n in find(loop.target, cst.Name)]
        enumerated = isinstance(loop.iter, cst.Call) and isinstance(loop.iter.func, cst.Name)
        if not attributes or not targets:
            continue
        if enumerated and isinstance(loop.iter, cst.Call) and isinstance(loop.iter.func, cst.Name):
            function_name = loop.iter.func.value
            if function_name == "enumerate":
                result[targets[-1]] = attributes[0]
            elif function_name == "zip":
                for target, arg in zip(targets, loop.iter.args, strict=False):
                    inner = next((a for n in find(arg, cst.Attribute) if (a := self_attribute(n))), None)
                    if inner is not None:
                        result[target] = inner
        else:
            result[targets[-1]] = attributes[0]
    for line in find(function.body, cst.Assign):
        if len(line.targets) == 1 and isinstance(line.targets[0].target, cst.Name):
            value = line.value.value if isinstance(line.value, cst.Subscript) else line.value
            attribute = self_attribute(value)
            if attribute is not None:
                result[line.targets[0].target.value] = attribute
    return result


def called_attribute(call: cst.Call, loop_variables: dict[str, str]) -> str | None:
    """The ``self`` attribute that is called: ``self.x(...)``, ``self.x[i](...)``, or by a loop variable."""
    func: cst.BaseExpression = call.func
    if isinstance(func, cst.Subscript):
        func = func.value
    attribute = self_attribute(func)
    if attribute is not None:
        return attribute
    return loop_variables.get(func.value) if isinstance(func, cst.Name) else None
