"""Rewrites of one function that keep what it does: other names, other layout, other forms of the same steps.

A rewrite of a tree changes it in place and returns it, or returns None where it does not apply; a rewrite of a text
returns the new text or None. They know nothing of the compiler and nothing is random.
"""

import ast
import io
import symtable
import tokenize
from collections.abc import Callable, Iterator


def blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
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
    for block in blocks(node):
        for index, statement in enumerate(block):
            if isinstance(statement, ast.AnnAssign) and statement.value is not None:
                block[index] = ast.Assign([statement.target], statement.value)
                changed = True
    return node if changed else None


def annotate_locals(node: ast.FunctionDef) -> ast.FunctionDef | None:
    changed = False
    for block in blocks(node):
        for index, statement in enumerate(block):
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                continue
            target = statement.targets[0]
            if isinstance(target, (ast.Name, ast.Attribute)):
                tensor = ast.Attribute(ast.Name("torch", ast.Load()), "Tensor", ast.Load())
                simple = int(isinstance(target, ast.Name))
                block[index] = ast.AnnAssign(target, tensor, statement.value, simple)
                changed = True
    return node if changed else None


def new_docstring(node: ast.FunctionDef) -> ast.FunctionDef:
    node.body.insert(0, ast.Expr(ast.Constant("Another docstring.")))
    return node


def bare_strings_and_pass(node: ast.FunctionDef) -> ast.FunctionDef:
    for block in list(blocks(node)):
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
    for block in blocks(node):
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
    for block in blocks(node):
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
    for block in blocks(node):
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
    for block in blocks(node):
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
