"""Mutants of one function: each does something else than the function, by one small change of its syntax tree."""

import ast
from collections.abc import Iterator

from function_rewrites import blocks


class Mutants:
    """All mutants of one function: each visit changes the tree in place, yields it, and puts it back."""

    def __init__(self, node: ast.FunctionDef) -> None:
        self.node = node
        self.parameters = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        self.locals = sorted(
            {
                part.id
                for part in ast.walk(node)
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and part.id not in self.parameters
            }
        )

    def __iter__(self) -> Iterator[str]:
        for part in list(ast.walk(self.node)):
            yield from self._of(part)
        for block in blocks(self.node):
            if isinstance(block[0], ast.stmt):
                yield from self._of_block(block)

    def _set(self, part: ast.AST, name: str, value: object, label: str) -> Iterator[str]:
        before = getattr(part, name)
        setattr(part, name, value)
        yield label
        setattr(part, name, before)

    def _of(self, part: ast.AST) -> Iterator[str]:
        if isinstance(part, ast.BinOp):
            operator = ast.Sub() if isinstance(part.op, ast.Add) else ast.Add()
            yield from self._set(part, "op", operator, "operator")
            if ast.dump(part.left) != ast.dump(part.right):
                part.left, part.right = part.right, part.left
                yield "operands swapped"
                part.left, part.right = part.right, part.left
        elif isinstance(part, ast.Compare):
            swapped = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Eq: ast.NotEq}
            operator_type = swapped.get(type(part.ops[0]), ast.Eq)
            yield from self._set(part, "ops", [operator_type(), *part.ops[1:]], "comparison")
        elif isinstance(part, ast.BoolOp):
            yield from self._set(part, "op", ast.Or() if isinstance(part.op, ast.And) else ast.And(), "and/or")
            yield from self._set(part, "values", part.values[::-1], "order of and/or")
        elif isinstance(part, (ast.If, ast.While, ast.IfExp)):
            yield from self._set(part, "test", ast.UnaryOp(ast.Not(), part.test), "test negated")
        elif isinstance(part, ast.Constant):
            yield from self._constant(part)
        elif isinstance(part, ast.Attribute):
            yield from self._set(part, "attr", part.attr + "_other", "attribute")
        elif isinstance(part, ast.Name):
            yield from self._name(part)
        elif isinstance(part, ast.Call):
            yield from self._call(part)
        elif isinstance(part, ast.Slice) and part.lower is None and part.upper is not None:
            part.lower, part.upper = part.upper, part.lower
            yield "slice"
            part.lower, part.upper = part.upper, part.lower
        elif isinstance(part, ast.Break):
            part.__class__ = ast.Continue  # type: ignore[assignment]
            yield "break to continue"
            part.__class__ = ast.Break  # type: ignore[assignment]
        elif isinstance(part, ast.arg) and part.arg in self.parameters:
            yield from self._set(part, "arg", part.arg + "_other", "parameter")
        elif isinstance(part, ast.FunctionDef) and part.decorator_list:
            if ast.unparse(part.decorator_list[0]).split("(")[0] != "auto_docstring":
                yield from self._set(part, "decorator_list", part.decorator_list[1:], "decorator dropped")
        elif isinstance(part, ast.AugAssign):
            yield from self._set(part, "op", ast.Div() if isinstance(part.op, ast.Mult) else ast.Mult(), "operator")

    def _constant(self, part: ast.Constant) -> Iterator[str]:
        value = part.value
        if isinstance(value, bool):
            yield from self._set(part, "value", not value, "constant")
            yield from self._set(part, "value", int(value), "type of constant")
        elif isinstance(value, int):
            yield from self._set(part, "value", value + 1, "constant")
            yield from self._set(part, "value", float(value), "type of constant")
        elif isinstance(value, (float, str)):
            yield from self._set(part, "value", value * 2 + type(value)(1), "constant")
        elif value is None:
            yield from self._set(part, "value", 0, "constant")

    def _name(self, part: ast.Name) -> Iterator[str]:
        if not isinstance(part.ctx, ast.Load):
            return
        if part.id in self.locals:
            others = [name for name in self.locals if name != part.id]
            if others:
                yield from self._set(part, "id", others[0], "which local")
        elif part.id not in self.parameters:
            yield from self._set(part, "id", part.id + "_other", "which global")
        else:
            others = [name for name in self.parameters if name != part.id]
            if others:
                yield from self._set(part, "id", others[0], "which parameter")

    def _call(self, part: ast.Call) -> Iterator[str]:
        if len(part.args) > 1 and ast.dump(part.args[0]) != ast.dump(part.args[1]):
            yield from self._set(part, "args", [part.args[1], part.args[0], *part.args[2:]], "arguments swapped")
        for index, keyword in enumerate(part.keywords):
            yield from self._set(
                part, "keywords", [*part.keywords[:index], *part.keywords[index + 1 :]], "keyword dropped"
            )
            if keyword.arg is not None:
                yield from self._set(keyword, "arg", keyword.arg + "_other", "keyword")
            following = part.keywords[(index + 1) % len(part.keywords)]
            named = keyword.arg is not None and following.arg is not None
            if named and ast.dump(following.value) != ast.dump(keyword.value):
                keyword.value, following.value = following.value, keyword.value
                yield "keyword values swapped"
                keyword.value, following.value = following.value, keyword.value
        if len(part.args) == 1 and not part.keywords and isinstance(part.func, (ast.Name, ast.Attribute)):
            inner = part.args[0]
            one = isinstance(inner, ast.Call) and len(inner.args) == 1 and not inner.keywords
            if one and isinstance(inner, ast.Call) and ast.dump(part.func) != ast.dump(inner.func):
                part.func, inner.func = inner.func, part.func
                yield "order of calls"
                part.func, inner.func = inner.func, part.func

    def _of_block(self, block: list[ast.stmt]) -> Iterator[str]:
        for index, statement in enumerate(list(block)):
            acts = isinstance(statement, (ast.AugAssign, ast.For, ast.If)) or (
                isinstance(statement, (ast.Assign, ast.Expr, ast.Return))
                and any(isinstance(part, ast.Call) for part in ast.walk(statement))
            )
            if not acts:
                continue
            if len(block) > 1:
                del block[index]
                yield "statement dropped"
                block.insert(index, statement)
            block.insert(index, statement)
            if isinstance(statement, (ast.Expr, ast.AugAssign)):
                yield "statement doubled"
            del block[index]
            if index + 1 < len(block) and isinstance(statement, ast.Assign):
                stored = {part.id for part in ast.walk(statement) if isinstance(part, ast.Name)}
                read = {part.id for part in ast.walk(block[index + 1]) if isinstance(part, ast.Name)}
                targets = {part.id for target in statement.targets for part in ast.walk(target)
                           if isinstance(part, ast.Name)}  # fmt: skip
                if targets & read and stored:
                    block[index], block[index + 1] = block[index + 1], block[index]
                    yield "statements swapped"
                    block[index], block[index + 1] = block[index + 1], block[index]
