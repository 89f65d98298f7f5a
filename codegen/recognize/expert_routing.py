"""What the lines before a loop over experts say: which experts have tokens, and which tokens."""

from __future__ import annotations

import libcst as cst

from codegen.syntax import assignment, code, dotted, names, one_line, self_attribute, statements

PERMUTED = ".permute(2, 1, 0)"
_HIT = "torch.greater({}.sum(dim=(-1, -2)), 0).nonzero"
HITS = (f"{_HIT}()", f"{_HIT}(as_tuple=False)", f"{_HIT}().squeeze(-1)")
ZEROS = frozenset({"zeros", "zeros_like", "new_zeros"})


class Routing:
    """Reads the lines one by one: a mask of one row for each expert, and the experts that have tokens."""

    def __init__(self, index: str) -> None:
        self._index = index
        self._masks: set[str] = set()  # [tokens, choices, experts]
        self.permuted: set[str] = set()  # [experts, choices, tokens]
        self.hits: set[str] = set()

    @property
    def found(self) -> set[str]:
        """The names that say who chose whom."""
        return self._masks | self.permuted | self.hits

    def problem(self, line: cst.BaseStatement, output: str) -> str | None:
        """Takes in one line; returns it when it says anything else."""
        bound = assignment(line)
        if bound is None:
            return f"`{code(line)}`"
        target, text = code(bound[0]), one_line(bound[1])
        if target == output:
            started = isinstance(bound[1], cst.Call) and (dotted(bound[1].func) or "").rsplit(".")[-1] in ZEROS
            return None if started else f"`{code(line)}`"
        plain = text.removesuffix(PERMUTED)
        hot = cst.parse_expression(plain)
        permuted = plain != text
        if isinstance(hot, cst.Call) and (dotted(hot.func) or "").endswith("one_hot"):
            given = [code(a.value) for a in hot.args if a.keyword is None]
            if given[:1] != [self._index] or len(hot.args) != 2:
                return f"`{code(line)}`"
            (self.permuted if permuted else self._masks).add(target)
        elif permuted and plain in self._masks:
            self._masks.discard(target)
            self.permuted.add(target)
        elif any(text in {hits.format(mask) for hits in HITS} for mask in self.permuted):
            self.hits.add(target)
        else:
            return f"`{code(line)}`"
        return None


def only_continues(branch: cst.If, expert: str) -> bool:
    """``if <tokens>.numel() == 0: continue``, or ``if expert == self.<number of experts>``: the sentinel of padding."""
    lines = statements(branch)
    return (
        branch.orelse is None
        and len(lines) == 1
        and one_line(lines[0]) == "continue"
        and (one_line(branch.test).endswith(".numel() == 0") or _is_sentinel(branch.test, expert))
    )


def _is_sentinel(test: cst.BaseExpression, expert: str) -> bool:
    if not isinstance(test, cst.Comparison) or len(test.comparisons) != 1:
        return False
    compared = test.comparisons[0]
    sides = (test.left, compared.comparator)
    return (
        isinstance(compared.operator, cst.Equal)
        and any(code(side) == expert for side in sides)
        and any(self_attribute(side) is not None for side in sides)
    )


def finds_hits(node: cst.CSTNode, known: set[str]) -> bool:
    """Whether code reads what the lines before found."""
    return bool(names(node) & known)


def stops_when_empty(branch: cst.If, index: str) -> bool:
    """``if <index>.numel() == 0``."""
    return code(branch.test) == f"{index}.numel() == 0"
