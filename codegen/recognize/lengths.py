"""What a method computes from the cache's length: names that hold it, that plus the new tokens, or the positions
between the two."""

from __future__ import annotations

from dataclasses import dataclass, field

import libcst as cst

from codegen.syntax import assignment, below, code, every_statement

LENGTH = "get_seq_length"
ROWS = ("unsqueeze", "view", "expand", "repeat", "to", "long")  # what gives counted positions rows, or moves them


@dataclass
class Lengths:
    """``seen`` are names of the cache's length, ``keys`` of that plus the call's own tokens, ``positions`` of the
    numbers from the first up to the second, ``other`` of anything else that depends on a length. ``ignored`` are nodes
    whose use of a length does not count any more."""

    seen: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    positions: set[str] = field(default_factory=set)
    other: set[str] = field(default_factory=set)
    ignored: set[int] = field(default_factory=set)

    @property
    def names(self) -> set[str]:
        return self.seen | self.keys | self.positions | self.other

    def bind(self, target: str, value: cst.BaseExpression) -> None:
        """Notes that a name now holds a value that depends on a length."""
        if self.is_seen(value):
            self.seen.add(target)
        elif self.is_counted(value):
            self.positions.add(target)
        elif self.is_keys(value):
            self.keys.add(target)
        else:
            self.other.add(target)

    def forget(self, target: str) -> None:
        """Notes that a name holds nothing any more that depends on a length."""
        for names in (self.seen, self.keys, self.positions, self.other):
            names.discard(target)

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
        """``past_key_values.get_seq_length()``, or 0 where there is no cache, or a name for that, or the first of
        counted positions."""
        if isinstance(value, cst.IfExp):
            return any(
                self.is_seen(one) and code(zero) == "0"
                for one, zero in ((value.body, value.orelse), (value.orelse, value.body))
            )
        if isinstance(value, cst.Call):
            return isinstance(value.func, cst.Attribute) and value.func.attr.value == LENGTH
        if isinstance(value, cst.Subscript):
            return self._names_positions(value.value) and [code(e.slice) for e in value.slice] == ["0"]
        return isinstance(value, cst.Name) and value.value in self.seen

    def is_keys(self, value: cst.BaseExpression) -> bool:
        """``seen + new`` or ``new + seen``, where nothing but ``seen`` depends on a length, or a name for that."""
        if isinstance(value, cst.BinaryOperation) and isinstance(value.operator, cst.Add):
            sides = ((value.left, value.right), (value.right, value.left))
            return any(self.is_seen(one) and not self.read_in(other) for one, other in sides)
        return isinstance(value, cst.Name) and value.value in self.keys

    def is_counted(self, value: cst.BaseExpression) -> bool:
        """``torch.arange(new) + seen`` or ``torch.arange(seen, seen + new)``, in any number of rows, or a name for
        that, or None in its place: the default of position_ids. Anything else would number tokens otherwise."""
        while isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute) and value.func.attr.value in ROWS:
            value = value.func.value
        if isinstance(value, cst.IfExp):
            sides = ((value.body, value.orelse), (value.orelse, value.body))
            return any(self.is_counted(one) and code(other) == "None" for one, other in sides)
        if isinstance(value, cst.BinaryOperation) and isinstance(value.operator, cst.Add):
            sides = ((value.left, value.right), (value.right, value.left))
            return any(self._arange(one, 1) and self.is_seen(other) for one, other in sides)
        return self._names_positions(value) or self._arange(value, 2)

    def _names_positions(self, value: cst.BaseExpression) -> bool:
        return isinstance(value, cst.Name) and value.value in self.positions

    def _arange(self, value: cst.BaseExpression, bounds: int) -> bool:
        """``torch.arange`` of as many bounds; the lower of two is the cache's length."""
        if not (isinstance(value, cst.Call) and code(value.func) == "torch.arange"):
            return False
        given = [arg.value for arg in value.args if arg.keyword is None]
        if len(given) != bounds:
            return False
        return not self.read_in(value) if bounds == 1 else self.is_seen(given[0]) and self.is_keys(given[1])


def lengths_of(function: cst.FunctionDef) -> Lengths:
    """All names of a method that depend on the cache's length, found in one pass over its assignments."""
    result = Lengths()
    for line in every_statement(function.body):
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name) and result.read_in(bound[1]):
            result.bind(bound[0].value, bound[1])
    return result
