"""Upstream's own methods, rewritten: what keeps the meaning keeps the fingerprint, what changes it changes it.

The rewrites work on the text or on a copy of the tree and know nothing of the canonical form. Nothing is random: every
rewrite is made wherever it applies in the chosen files.
"""

import ast
import copy
import importlib.util
import io
import symtable
import time
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.fingerprint import fingerprint, methods

Function = ast.FunctionDef | ast.AsyncFunctionDef

FILES = ("llama", "falcon", "deepseek_v3", "qwen3_next", "phimoe", "gpt_neox")
MUTATED = ("llama", "deepseek_v3")


def _models() -> Path:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations))) / "models"


@pytest.fixture(scope="module")
def originals() -> dict[str, ast.FunctionDef]:
    """Functions and methods of FILES, as printed by ast.unparse: text and positions agree."""
    found = {}
    for name in FILES:
        tree = ast.parse((_models() / name / f"modeling_{name}.py").read_text(encoding="utf-8"))
        for key, node in methods(tree).items():
            if isinstance(node, ast.FunctionDef):
                printed = ast.parse(ast.unparse(node)).body[0]
                assert isinstance(printed, ast.FunctionDef)
                assert fingerprint(printed) == fingerprint(node), f"{name} {key}: printing changed the fingerprint"
                found[f"{name}:{key}"] = printed
    return found


# ------------------------------------------------------------------------------------------------ meaning preserved


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    for part in ast.walk(node):
        for name in ("body", "orelse", "finalbody"):
            value = getattr(part, name, None)
            if isinstance(value, list) and value:
                yield value


def rename_locals(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """Adds a suffix to every name that is a local wherever it occurs and a parameter, global or attribute nowhere."""
    if any(isinstance(part, ast.Name) and part.id in ("locals", "vars") for part in ast.walk(node)):
        return None
    local: set[str] = set()
    kept: set[str] = set()
    tables = [symtable.symtable(ast.unparse(node), "upstream", "exec").get_children()[0]]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_parameter() or symbol.is_global() or symbol.is_imported():
                kept.add(symbol.get_name())
            elif symbol.is_local() or symbol.is_free():
                local.add(symbol.get_name())
    kept |= {part.name for part in ast.walk(node) if isinstance(part, ast.FunctionDef)}
    # Reversed, so that an order by name would be noticed.
    names = {name: f"v{index}_{name[::-1]}" for index, name in enumerate(sorted(local - kept, reverse=True))}
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in names:
            part.id = names[part.id]
        elif isinstance(part, ast.ExceptHandler) and part.name in names:
            part.name = names[part.name]
    return node if names else None


def reverse_keywords(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """Reverses the keyword arguments of calls whose values are names, attributes or constants."""
    changed = False
    for part in ast.walk(node):
        if isinstance(part, ast.Call) and len(part.keywords) > 1:
            named = [keyword for keyword in part.keywords if keyword.arg is not None]
            plain = all(isinstance(k.value, (ast.Name, ast.Attribute, ast.Constant)) for k in part.keywords)
            ordered = isinstance(part.func, ast.Name) and part.func.id == "dict"
            if plain and len(named) > 1 and not ordered:
                part.keywords = named[::-1] + [keyword for keyword in part.keywords if keyword.arg is None]
                changed = True
    return node if changed else None


def drop_annotations(node: ast.FunctionDef) -> ast.FunctionDef | None:
    changed = node.returns is not None
    node.returns = None
    for part in ast.walk(node):
        if isinstance(part, ast.arg) and part.annotation is not None:
            part.annotation = None
            changed = True
    for block in _blocks(node):
        for index, statement in enumerate(block):
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                block[index] = ast.Assign([statement.target], statement.value)
                changed = True
    return node if changed else None


def annotate_locals(node: ast.FunctionDef) -> ast.FunctionDef | None:
    changed = False
    for block in _blocks(node):
        for index, statement in enumerate(block):
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                continue
            target = statement.targets[0]
            if isinstance(target, (ast.Name, ast.Attribute)):
                simple = int(isinstance(target, ast.Name))
                block[index] = ast.AnnAssign(target, ast.Name("Tensor", ast.Load()), statement.value, simple)
                changed = True
    return node if changed else None


def new_docstring(node: ast.FunctionDef) -> ast.FunctionDef:
    node.body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
    return node


def bare_strings_and_pass(node: ast.FunctionDef) -> ast.FunctionDef:
    for block in list(_blocks(node)):
        if isinstance(block[0], ast.stmt):
            block.append(ast.Pass())
            block.insert(0, ast.Expr(ast.Constant("A remark.")))
    return node


def alias_attributes(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """Reads every `self.x` that is never stored through a local that is set first."""
    parts = list(ast.walk(node))
    nested = [part for part in parts if isinstance(part, (ast.Lambda, ast.GeneratorExp, ast.ClassDef, ast.FunctionDef))]
    if len(nested) > 1 or not node.args.args or node.args.args[0].arg != "self":
        return None
    if any(isinstance(part, ast.Expr) and not isinstance(part.value, ast.Constant) for part in parts):
        return None  # a call for its effect may change self
    attributes = [part for part in parts if isinstance(part, ast.Attribute)]
    stored = {part.attr for part in attributes if not isinstance(part.ctx, ast.Load)}
    read = {
        part.attr: None
        for part in attributes
        if isinstance(part.value, ast.Name) and part.value.id == "self" and part.attr not in stored
    }
    if not read:
        return None

    class Through(ast.NodeTransformer):
        def visit_Attribute(self, part: ast.Attribute) -> ast.expr:
            self.generic_visit(part)
            if isinstance(part.value, ast.Name) and part.value.id == "self" and part.attr in read:
                return ast.Name(f"own_{part.attr}", ast.Load())
            return part

    decorators, node.decorator_list = node.decorator_list, []
    Through().visit(node)
    node.decorator_list = decorators
    for attribute in read:
        value = ast.Attribute(ast.Name("self", ast.Load()), attribute, ast.Load())
        node.body.insert(0, ast.Assign([ast.Name(f"own_{attribute}", ast.Store())], value))
    return node


def _always_leaves(block: list[ast.stmt]) -> bool:
    return isinstance(block[-1], (ast.Return, ast.Raise, ast.Continue, ast.Break))


def else_after_jump(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """Puts what follows `if ...: return` under `else`."""
    changed = False
    for block in _blocks(node):
        for index, statement in enumerate(block):
            if isinstance(statement, ast.If) and not statement.orelse and _always_leaves(statement.body):
                rest = block[index + 1 :]
                if rest:
                    statement.orelse = rest
                    del block[index + 1 :]
                    changed = True
                break
    return node if changed else None


def no_else_after_jump(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """Takes what is under the `else` of `if ...: return` out of it."""
    changed = False
    for block in _blocks(node):
        index = 0
        while index < len(block):
            statement = block[index]
            if isinstance(statement, ast.If) and statement.orelse and _always_leaves(statement.body):
                block[index + 1 : index + 1] = statement.orelse
                statement.orelse = []
                changed = True
            index += 1
    return node if changed else None


def swap_branches(node: ast.FunctionDef) -> ast.FunctionDef | None:
    changed = False
    for part in ast.walk(node):
        if isinstance(part, (ast.If, ast.IfExp)) and part.orelse:
            part.test, part.body, part.orelse = ast.UnaryOp(ast.Not(), part.test), part.orelse, part.body
            changed = True
    return node if changed else None


def spell_out_conditionals(node: ast.FunctionDef) -> ast.FunctionDef | None:
    changed = False
    for block in _blocks(node):
        for index, statement in enumerate(block):
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.IfExp):
                choice = statement.value
                block[index] = ast.If(
                    choice.test,
                    [ast.Assign(statement.targets, choice.body)],
                    [ast.Assign(statement.targets, choice.orelse)],
                )
                changed = True
    return node if changed else None


def return_through_local(node: ast.FunctionDef) -> ast.FunctionDef | None:
    changed = False
    for block in _blocks(node):
        last = block[-1]
        if isinstance(last, ast.Return) and last.value is not None and not isinstance(last.value, ast.Constant):
            block[-1:] = [
                ast.Assign([ast.Name("what_comes_out", ast.Store())], last.value),
                ast.Return(ast.Name("what_comes_out", ast.Load())),
            ]
            changed = True
    return node if changed else None


def bare_return(node: ast.FunctionDef) -> ast.FunctionDef | None:
    if isinstance(node.body[-1], ast.Return):
        return None
    node.body.append(ast.Return(ast.Constant(None)))
    return node


TREE_REWRITES: tuple[Callable[[ast.FunctionDef], ast.FunctionDef | None], ...] = (
    rename_locals,
    reverse_keywords,
    drop_annotations,
    annotate_locals,
    new_docstring,
    bare_strings_and_pass,
    alias_attributes,
    else_after_jump,
    no_else_after_jump,
    swap_branches,
    spell_out_conditionals,
    return_through_local,
    bare_return,
)


def parenthesise(text: str) -> str | None:
    """Puts the value of every assignment and return in parentheses, on lines of its own."""
    edits = []
    for part in ast.walk(ast.parse(text)):
        if isinstance(part, (ast.Assign, ast.Return)) and part.value is not None:
            edits.append((part.value.lineno, part.value.col_offset, "(\n"))
            edits.append((part.value.end_lineno, part.value.end_col_offset, "\n)"))
    lines = text.encode().split(b"\n")
    for line, column, addition in sorted(edits, reverse=True):
        assert line is not None and column is not None
        lines[line - 1] = lines[line - 1][:column] + addition.encode() + lines[line - 1][column:]
    return b"\n".join(lines).decode() if edits else None


def _tokens(text: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(text).readline))


def comment_every_line(text: str) -> str:
    lines = text.split("\n")
    for token in reversed(_tokens(text)):
        if token.type == tokenize.NEWLINE:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column] + "  # a remark\n\n  # and one on its own line"
    return "\n".join(lines)


def wrap_in_brackets(text: str) -> str | None:
    """Breaks the line after every comma inside brackets and adds spaces."""
    depth = 0
    breaks = []
    for token in _tokens(text):
        if token.type == tokenize.OP:
            depth += (token.string in "([{") - (token.string in ")]}")
            if token.string == "," and depth:
                breaks.append(token.end)
    lines = text.split("\n")
    for row, column in reversed(breaks):
        lines[row - 1] = lines[row - 1][:column] + "\n" + " " * 50 + lines[row - 1][column:]
    return "\n".join(lines) if breaks else None


def other_quotes(text: str) -> str | None:
    """Writes plain one-line strings with the other kind of quotes and an explicit join."""
    lines = text.split("\n")
    changed = False
    for token in reversed(_tokens(text)):
        body = token.string[1:-1]
        plain = body and not any(character in "\"'\\" for character in body)
        if token.type == tokenize.STRING and token.string[0] == "'" and token.start[0] == token.end[0] and plain:
            row, column = token.start
            new = f'("{body[:1]}" "{body[1:]}")'
            lines[row - 1] = lines[row - 1][:column] + new + lines[row - 1][token.end[1] :]
            changed = True
    return "\n".join(lines) if changed else None


TEXT_REWRITES: tuple[Callable[[str], str | None], ...] = (
    parenthesise,
    comment_every_line,
    wrap_in_brackets,
    other_quotes,
)


def test_rewrites_that_keep_the_meaning_keep_the_fingerprint(originals: dict[str, ast.FunctionDef]) -> None:
    made: Counter[str] = Counter()
    wrong = []
    for key, node in originals.items():
        expected = fingerprint(node)
        text = ast.unparse(node)
        rewritten: list[tuple[str, str]] = []
        for rewrite in TREE_REWRITES:
            result = rewrite(copy.deepcopy(node))
            if result is not None:
                rewritten.append((rewrite.__name__, ast.unparse(ast.fix_missing_locations(result))))
        for text_rewrite in TEXT_REWRITES:
            other = text_rewrite(text)
            if other is not None:
                rewritten.append((text_rewrite.__name__, other))
        for name, new in rewritten:
            assert new != text, (key, name)
            made[name] += 1
            if fingerprint(_only(new)) != expected:
                wrong.append(f"{key} {name}")
    print(f"{sum(made.values())} rewrites of {len(originals)} methods: {dict(made)}")
    assert not wrong, f"{len(wrong)} of {sum(made.values())}: {wrong[:20]}"
    assert all(made[rewrite.__name__] >= 2 for rewrite in (*TREE_REWRITES, *TEXT_REWRITES)), made
    assert sum(made.values()) >= 1000


def _only(text: str) -> Function:
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.FunctionDef)
    return node


# -------------------------------------------------------------------------------------------------- meaning changed


class _Mutants:
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
        for block in _blocks(self.node):
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


def test_mutants_that_change_the_meaning_change_the_fingerprint(originals: dict[str, ast.FunctionDef]) -> None:
    made: Counter[str] = Counter()
    survivors = []
    for key, node in originals.items():
        if key.split(":")[0] not in MUTATED:
            continue
        node = copy.deepcopy(node)
        if isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            del node.body[0]
            if not node.body:
                continue
        node = drop_annotations(node) or node
        expected = fingerprint(node)
        for label in _Mutants(node):
            made[label] += 1
            if fingerprint(node) == expected:
                survivors.append(f"{key} {label}:\n{ast.unparse(node)}")
        assert fingerprint(node) == expected
    print(f"{sum(made.values())} mutants: {dict(made)}")
    assert not survivors, f"{len(survivors)} of {sum(made.values())}\n" + "\n".join(survivors[:3])
    assert all(count >= 3 for count in made.values()), made
    assert sum(made.values()) >= 1500


# ------------------------------------------------------------------------------------------------------------ speed


def test_fingerprints_cost_about_as_much_as_parsing() -> None:
    """Budget: all causal-LM files in 15 CPU seconds, parsing included. Measured here on every third of them."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(_models().glob("*/modeling_*.py"))]
    texts = [text for text in texts if "ForCausalLM(" in text]
    assert len(texts) >= 140
    parsing = fingerprinting = 0.0
    files = count = 0
    for text in texts[::3]:
        start = time.process_time()
        tree = ast.parse(text)
        parsed = time.process_time()
        found = [fingerprint(node) for node in methods(tree).values()]
        fingerprinting += time.process_time() - parsed
        parsing += parsed - start
        files += 1
        count += len(found)
    print(f"{files} files, {count} definitions: parsing {parsing:.1f} s, fingerprints {fingerprinting:.1f} s CPU")
    assert fingerprinting <= 2 * parsing
    assert parsing + fingerprinting < 5
