"""What a method computes from the cache's length: names that hold it, and names that hold it plus the new tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import libcst as cst

from codegen.syntax import assignment, below, code, every_statement

LENGTH = "get_seq_length"


@dataclass
class Lengths:
    """``seen`` are names of the cache's length, ``keys`` of that plus the call's own tokens, ``other`` of anything
    else that depends on it. ``ignored`` are nodes whose use of a length does not count any more."""

    seen: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    ignored: set[int] = field(default_factory=set)

    @property
    def names(self) -> set[str]:
        return self.seen | self.keys | self.other

    def bind(self, target: str, value: cst.BaseExpression) -> None:
        """Notes that a name now holds a value that depends on a length."""
        kind = self.seen if self.is_seen(value) else self.keys if self.is_keys(value) else self.other
        kind.add(target)

    def read_in(self, node: cst.CSTNode) -> bool:
        """Whether the code below the node asks for the cache's length, or reads a name that depends on it."""
        counted = self.names
        stack: list[cst.CSTNode] = [node]
        while stack:
            current = stack.pop()
            if id(current) in self.ignored:
                continue
            if isinstance(current, cst.Name) and current.value in counted:
                return True
            if isinstance(current, cst.Attribute):
                if current.attr.value == LENGTH:
                    return True
                stack.append(current.value)
            elif isinstance(current, cst.Arg):
                stack.append(current.value)
            else:
                stack.extend(below(current))
        return False

    def is_seen(self, value: cst.BaseExpression) -> bool:
        """``past_key_values.get_seq_length()``, or 0 where there is no cache, or a name for that."""
        if isinstance(value, cst.IfExp):
            return any(
                self.is_seen(one) and code(zero) == "0"
                for one, zero in ((value.body, value.orelse), (value.orelse, value.body))
            )
        if isinstance(value, cst.Call):
            return isinstance(value.func, cst.Attribute) and value.func.attr.value == LENGTH
        return isinstance(value, cst.Name) and value.value in self.seen

    def is_keys(self, value: cst.BaseExpression) -> bool:
        """``seen + new`` or ``new + seen``, where nothing but ``seen`` depends on a length, or a name for that."""
        if isinstance(value, cst.BinaryOperation) and isinstance(value.operator, cst.Add):
            sides = ((value.left, value.right), (value.right, value.left))
            return any(self.is_seen(one) and not self.read_in(other) for one, other in sides)
        return isinstance(value, cst.Name) and value.value in self.keys


def lengths_of(function: cst.FunctionDef) -> Lengths:
    """All names of a method that depend on the cache's length, found in one pass over its assignments."""
    result = Lengths()
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name) and result.read_in(bound[1]):
            result.bind(bound[0].value, bound[1])
    return result
