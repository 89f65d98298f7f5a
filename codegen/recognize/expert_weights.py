"""Experts whose weights are handed to another class: ``self.mlp(rows, w1, v1, w2)`` inside the loop over experts."""

from __future__ import annotations

from collections.abc import Set

import libcst as cst

from codegen.syntax import assignment, code, find, parameters, self_attribute, statements
from codegen.upstream import UpstreamModule


def expert_variable(loop: cst.For) -> str:
    """The name of the expert's number in the loop: its target, or what ``int(target.item())`` or ``target[0]`` is
    called from then on."""
    target = code(loop.target)
    for line in statements(loop):
        bound = assignment(line)
        read = (f"int({target}.item())", f"{target}.item()", f"{target}[0]")
        if bound is not None and isinstance(bound[0], cst.Name) and code(bound[1]) in read:
            return bound[0].value
    return target


def weight_parameters(module: UpstreamModule, reachable: tuple[str, ...], cls: str) -> frozenset[str]:
    """The parameters of ``cls.forward`` that a loop over experts gives one expert's weights."""
    result: set[str] = set()
    for holder in reachable:
        attributes = {a for a, classes in module.submodules(holder).items() if cls in classes}
        for method in module.reachable_methods(holder) if attributes else ():
            for loop in find(method.node.body, cst.For):
                weights = _owned(loop)
                for call in find(loop, cst.Call):
                    if self_attribute(call.func) in attributes:
                        result |= _received(module, cls, call, weights)
    return frozenset(result)


def takes_expert_weights(module: UpstreamModule, holder: str, call: cst.Call, weights: Set[str]) -> bool:
    """Whether the call goes to a class of the file, every weight to a parameter of its own."""
    attribute = self_attribute(call.func)
    classes = module.submodules(holder).get(attribute, ()) if attribute is not None else ()
    given = sum(code(a.value) in weights for a in call.args)
    return bool(classes) and all(len(_received(module, cls, call, weights)) == given for cls in classes)


def _owned(loop: cst.For) -> set[str]:
    """Names in the loop for ``<all weights>[expert]``."""
    expert = expert_variable(loop)
    return {
        bound[0].value
        for line in statements(loop)
        if (bound := assignment(line)) is not None
        and isinstance(bound[0], cst.Name)
        and isinstance(bound[1], cst.Subscript)
        and len(bound[1].slice) == 1
        and code(bound[1].slice[0].slice) == expert
        and code(bound[0]) != expert
    }


def _received(module: UpstreamModule, cls: str, call: cst.Call, weights: Set[str]) -> set[str]:
    method = module.method(cls, "forward")
    if method is None:
        return set()
    labels = parameters(method.node)
    positional = [a for a in call.args if a.keyword is None and not a.star]
    found = {label for label, a in zip(labels, positional, strict=False) if code(a.value) in weights}
    return found | {
        a.keyword.value
        for a in call.args
        if a.keyword is not None and a.keyword.value in labels and code(a.value) in weights
    }
