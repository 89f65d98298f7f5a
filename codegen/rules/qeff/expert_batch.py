"""The lines of a loop over experts, rewritten one by one for a batch of (token, choice) pairs."""

from __future__ import annotations

import libcst as cst

from codegen.recognize.expert_routing import only_continues
from codegen.recognize.expert_weights import takes_expert_weights
from codegen.recognize.grouped_product import LINEAR
from codegen.rules.base import Site
from codegen.syntax import (
    Replacement,
    assignment,
    code,
    dotted,
    expression,
    find,
    names,
    one_line,
    replaced,
    self_attribute,
    statement,
    statements,
    walk,
)


class ExpertBatch:
    """What the loop's names mean, and its lines rewritten one by one."""

    def __init__(self, site: Site, index: str, expert: str) -> None:
        self.site = site
        self.index = index
        self.expert = expert
        self.weights: set[str] = set()  # local names of what one expert owns
        self.position: str | None = None
        self.token: str | None = None
        self.output: str | None = None
        self.mask = ""  # whose row of an expert says which tokens chose it
        self.hidden: str | None = None
        self.choice_weights: set[str] = set()  # what has a weight for each choice of a token
        self.used: set[str] = set()

    def take(self, line: cst.BaseStatement, out: list[cst.BaseStatement]) -> str | None:
        """Appends the rewritten line; returns what is wrong with it, if anything."""
        bound = assignment(line)
        if isinstance(line, cst.If):
            if only_continues(line, self.expert):
                return None  # skips an expert nobody chose, or the sentinel of padding: the batch holds neither
            return self._choose(line, out)
        if isinstance(line, cst.With):
            for inner in statements(line):
                problem = self.take(inner, out)
                if problem is not None:
                    return problem
            return None
        if bound is not None:
            target, value = bound
            if isinstance(target, cst.Name) and target.value == self.expert:
                return None  # expert_idx = expert_idx[0] / .item()
            if isinstance(target, cst.Tuple) and isinstance(value, cst.Call) and dotted(value.func) == "torch.where":
                row = one_line(value.args[0].value).removesuffix(".squeeze(0)")
                if len(value.args) != 1 or not row.endswith(f"[{self.expert}]"):
                    return f"`{code(line)}`"
                self.mask = row.removesuffix(f"[{self.expert}]")
                self.position, self.token = (code(e.value) for e in target.elements)
                return None
            if isinstance(target, cst.Name) and self._owned(value):
                self.weights.add(target.value)
                out.append(line)
                return None
            return self._append(line, out)
        if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 and isinstance(line.body[0], cst.Expr):
            call = line.body[0].value
            if (
                isinstance(call, cst.Call)
                and isinstance(call.func, cst.Attribute)
                and call.func.attr.value == "index_add_"
            ):
                if [code(a.value) for a in call.args[:2]] != ["0", self.token] or len(call.args) != 3:
                    return f"`{code(line)}`"
                self.output = code(call.func.value)
                added = self._rewritten(call.args[2].value)
                if isinstance(added, str):
                    return added
                summed = statement(f"{self.output} = sum_over_choices(VALUE, {self.index})", VALUE=self._cast(added))
                out.append(summed)
                return None
        return f"`{code(line)}`"

    def _choose(self, line: cst.If, out: list[cst.BaseStatement]) -> str | None:
        """``if expert >= limit: x = a; else: ...; x = b`` computes both for every row and keeps one of them."""
        tests = _alternatives(line.test)
        limits = [limit for test in tests if (limit := self._limit(test)) is not None]
        others = [test for test in tests if self._limit(test) is None]
        first = statements(line)
        bound = assignment(first[0]) if len(first) == 1 else None
        if len(limits) != 1 or bound is None or not isinstance(line.orelse, cst.Else):
            return f"`{code(line.test)}`"
        if any(self.expert in names(test) for test in others) or self.expert in names(bound[1]):
            return f"`{code(line.test)}`"
        inner: list[cst.BaseStatement] = []
        for other in statements(line.orelse):
            problem = self.take(other, inner)
            if problem is not None:
                return problem
        last = assignment(inner[-1]) if inner else None
        first_value = self._rewritten(bound[1])
        if not isinstance(first_value, cst.BaseExpression) or last is None or code(last[0]) != code(bound[0]):
            return f"`{code(line.test)}`"
        # an expert beyond the limit has no weights: its rows take the last one's, and are dropped
        known = f"{self.expert}_in_range"
        inner = [_renamed(s, self.expert, known) for s in inner]
        inner.insert(0, statement(f"{known} = {self.expert}.clamp(max=LIMIT - 1)", LIMIT=limits[0]))
        chosen = f"torch.where(({self.expert} >= LIMIT).unsqueeze(-1), FIRST, SECOND)"
        inner.append(
            statement(f"RESULT = {chosen}", RESULT=bound[0], LIMIT=limits[0], FIRST=first_value, SECOND=bound[0])
        )
        if not others:
            out += inner
            return None
        test = others[0]
        for another in others[1:]:
            test = cst.BooleanOperation(test, cst.Or(), another)
        alone = statement("RESULT = FIRST", RESULT=bound[0], FIRST=first_value)
        out.append(
            cst.If(
                test=test,
                body=cst.IndentedBlock([alone]),
                orelse=cst.Else(body=cst.IndentedBlock(inner)),
                leading_lines=line.leading_lines,
            )
        )
        return None

    def _limit(self, test: cst.BaseExpression) -> cst.BaseExpression | None:
        """``limit`` of ``expert >= limit``."""
        if not isinstance(test, cst.Comparison) or len(test.comparisons) != 1 or code(test.left) != self.expert:
            return None
        compared = test.comparisons[0]
        return compared.comparator if isinstance(compared.operator, cst.GreaterThanEqual) else None

    def _append(self, line: cst.BaseStatement, out: list[cst.BaseStatement]) -> str | None:
        rewritten = self._rewritten(line)
        if isinstance(rewritten, str):
            return rewritten
        assert isinstance(rewritten, cst.BaseStatement)
        out.append(rewritten)
        return None

    def _rewritten(self, node: cst.CSTNode) -> cst.CSTNode | str:
        changes: dict[cst.CSTNode, Replacement] = {}
        for found in walk(node):
            if (
                isinstance(found, cst.Call)
                and dotted(found.func) in LINEAR
                and len(found.args) in (2, 3)
                and self._of_expert(found.args[1].value)
            ):
                self.used.add("expert_linear")
                changes[found.func] = cst.Name("expert_linear")
            elif (
                isinstance(found, cst.BinaryOperation)
                and isinstance(found.operator, cst.MatrixMultiply)
                and self._of_expert(found.right)
            ):
                if any(isinstance(n, cst.Subscript) and self._gathers(n) for n in find(found.left, cst.Subscript)):
                    return f"`{code(found)}`"
                self.used.add("expert_matmul")
                changes[found] = expression("expert_matmul(LEFT, RIGHT)", LEFT=found.left, RIGHT=found.right)
            elif isinstance(found, cst.Subscript) and self._gathers(found):
                if len(found.slice) == 1:
                    changes[found] = expression(f"routed_tokens(HIDDEN, {self.index})", HIDDEN=found.value)
                    self.hidden = code(found.value)
                elif not self._of_pair(found):
                    return f"`{code(found)}`"
                else:
                    changes[found] = expression("WEIGHTS.reshape(-1, 1)", WEIGHTS=found.value)
                    self.choice_weights.add(code(found.value))
        for call in find(node, cst.Call):
            # a weight that is one matrix for each row now goes to a class that knows, or to nobody
            handed_on = call.func not in changes and any(code(a.value) in self.weights for a in call.args)
            if handed_on and not takes_expert_weights(self.site.module, self.site.cls, call, self.weights):
                return f"`{code(call)}`"
        result = replaced(node, changes)
        for name in (self.token, self.position):
            if name is not None and name in names(result):
                return f"`{code(node)}`"
        if any(
            self.expert in names(n)
            for n in find(result, cst.Call)
            if dotted(n.func) not in ("expert_linear", "expert_matmul") and self._passes_expert(n)
        ):
            return f"`{code(node)}`"
        return result

    def _passes_expert(self, call: cst.Call) -> bool:
        return any(isinstance(a.value, cst.Name) and a.value.value == self.expert for a in call.args)

    def _owned(self, value: cst.BaseExpression) -> bool:
        """``<all weights>[expert_idx]``, taken out of the product it goes into."""
        return (
            isinstance(value, cst.Subscript)
            and len(value.slice) == 1
            and code(value.slice[0].slice) == self.expert
            and not names(value.value) & {self.token, self.position, self.expert}
        )

    def _of_expert(self, node: cst.BaseExpression) -> bool:
        """``self.weights[expert_idx]``, or a name for it."""
        if isinstance(node, cst.Name):
            return node.value in self.weights
        return (
            isinstance(node, cst.Subscript)
            and self_attribute(node.value) is not None
            and len(node.slice) == 1
            and code(node.slice[0].slice) == self.expert
        )

    def _gathers(self, node: cst.Subscript) -> bool:
        return self.token is not None and code(node.slice[0].slice) == self.token

    def _of_pair(self, node: cst.Subscript) -> bool:
        """``weights[token_idx, top_k_pos, None]``."""
        return [code(e.slice) for e in node.slice] == [self.token, self.position, "None"]

    def _cast(self, value: cst.CSTNode) -> cst.BaseExpression:
        """``x.to(final.dtype)`` reads the buffer that is gone; it had the dtype of the hidden states."""
        assert isinstance(value, cst.BaseExpression)
        changes: dict[cst.CSTNode, Replacement] = {
            n: cst.parse_expression(f"{self.hidden}.dtype")
            for n in find(value, cst.Attribute)
            if code(n) == f"{self.output}.dtype" and self.hidden is not None
        }
        return replaced(value, changes)


def _alternatives(test: cst.BaseExpression) -> list[cst.BaseExpression]:
    """``a``, ``b``, ``c`` of ``a or b or c``."""
    if isinstance(test, cst.BooleanOperation) and isinstance(test.operator, cst.Or):
        return [*_alternatives(test.left), *_alternatives(test.right)]
    return [test]


def _renamed(line: cst.BaseStatement, old: str, new: str) -> cst.BaseStatement:
    return replaced(line, {n: cst.Name(new) for n in find(line, cst.Name) if n.value == old})
