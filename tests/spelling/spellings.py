"""Whole modeling files in other words: rewrites of a text that keep what the file does.

Each spelling is made wherever it applies in a file, is deterministic, and knows nothing of the compiler. One that
applies nowhere returns None.
"""

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import function_rewrites as functions
from function_rewrites import blocks

FRESH = "by_itself"
"""What the names of new locals begin with; upstream has none like it."""

Rewrite = Callable[[str], str | None]


@dataclass(frozen=True)
class Spelling:
    """A rewrite of files. `common`: whether people write code this way, so that a compiler should follow it."""

    name: str
    rewrite: Rewrite
    common: bool = True


def definitions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Module-level functions and methods of module-level classes with their qualified names, in the file's order."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    yield f"{node.name}.{member.name}", member


def everywhere(rewrite: Callable[[ast.FunctionDef], ast.FunctionDef | None], only: str = "") -> Rewrite:
    """A rewrite of functions, applied to every function and method of a file, or to `only` one by qualified name."""

    def rewritten(text: str) -> str | None:
        tree = ast.parse(text)
        changed = [rewrite(node) for name, node in definitions(tree) if only in ("", name)]
        return _printed(tree) if any(node is not None for node in changed) else None

    return rewritten


def _printed(tree: ast.AST) -> str:
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def printed_anew(text: str) -> str:
    """As Python itself prints the syntax tree: no comments, no blank lines, long lines, single quotes."""
    return _printed(ast.parse(text))


def other_quotes(text: str) -> str | None:
    return functions.other_quotes(printed_anew(text))


def joined_lines(text: str) -> str | None:
    """Joins simple statements that follow each other by semicolons."""
    tree = ast.parse(printed_anew(text))
    lines = printed_anew(text).split("\n")
    simple = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)
    joined = False
    for _, node in definitions(tree):
        for block in blocks(node):
            for first, second in zip(block[-2::-1], block[:0:-1], strict=True):
                if isinstance(first, simple) and isinstance(second, simple) and _is_plain(first):
                    assert second.lineno == first.lineno + 1, "one statement, one line"
                    if second.end_lineno == second.lineno:
                        lines[first.lineno - 1] += "; " + lines[second.lineno - 1].strip()
                        lines[second.lineno - 1] = ""
                        joined = True
    return "\n".join(lines) if joined else None


def _is_plain(node: ast.stmt) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return node.lineno == node.end_lineno and not docstring


def reversed_methods(text: str) -> str | None:
    """Reverses the order of methods in every class whose methods need none of each other to be defined."""
    tree = ast.parse(text)
    changed = False
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            methods = [member for member in node.body if isinstance(member, ast.FunctionDef)]
            names = [member.name for member in methods]
            used = {part.id for member in methods for one in member.decorator_list for part in ast.walk(one)
                    if isinstance(part, ast.Name)}  # fmt: skip
            if len(methods) > 1 and len(set(names)) == len(names) and not used & set(names):
                order = iter(methods[::-1])
                node.body = [next(order) if isinstance(m, ast.FunctionDef) else m for m in node.body]
                changed = True
    return _printed(tree) if changed else None


def aliased_imports(text: str) -> str | None:
    """Gives every name that the file imports from a module another name, but for decorators and what strings name."""
    tree = ast.parse(text)
    # a class body's annotations are read by others, and so is what a string names
    fields = [
        s for node in tree.body if isinstance(node, ast.ClassDef) for s in node.body if isinstance(s, ast.AnnAssign)
    ]
    kept = {part.id for field in fields for part in ast.walk(field) if isinstance(part, ast.Name)}
    kept |= {part.value for part in ast.walk(tree) if isinstance(part, ast.Constant) and isinstance(part.value, str)}
    renamed: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module != "__future__":
            for alias in node.names:
                name = alias.asname or alias.name
                if name not in kept and name != "*":
                    renamed[name] = alias.asname = f"{name}_as_imported"
    bound = {part.id for part in ast.walk(tree) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    bound |= {part.arg for part in ast.walk(tree) if isinstance(part, ast.arg)}
    assert not bound & renamed.keys(), bound & renamed.keys()
    for part in ast.walk(tree):
        if isinstance(part, ast.Name) and part.id in renamed:
            part.id = renamed[part.id]
    return _printed(tree) if renamed else None


Signatures = Mapping[str, tuple[str, ...]]


def signatures(text: str) -> Signatures:
    """Module-level functions without `*args`: what can be given by position, in order."""
    return {
        node.name: tuple(argument.arg for argument in node.args.args)
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.args.vararg is None and not node.args.posonlyargs
    }


def _calls(tree: ast.Module, signatures: Signatures) -> Iterator[tuple[ast.Call, tuple[str, ...]]]:
    """Calls of the file's functions by their names, of arguments that may be evaluated in any order."""
    for part in ast.walk(tree):
        if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in signatures:
            values = [*part.args, *(keyword.value for keyword in part.keywords)]
            if all(isinstance(value, (ast.Name, ast.Attribute, ast.Constant)) for value in values):
                yield part, signatures[part.func.id]


def keywords_for_positions(text: str) -> str | None:
    """Gives arguments of the file's functions by keyword instead of by position."""
    tree = ast.parse(text)
    return _printed(tree) if name_arguments(tree, signatures(text)) else None


def name_arguments(tree: ast.Module, known: Signatures) -> bool:
    """Gives arguments of known functions by keyword instead of by position; whether there are any."""
    changed = False
    for call, names in _calls(tree, known):
        if call.args and len(call.args) <= len(names):
            named = [ast.keyword(name, value) for name, value in zip(names, call.args, strict=False)]
            call.args, call.keywords = [], [*named, *call.keywords]
            changed = True
    return changed


def positions_for_keywords(text: str) -> str | None:
    """Gives arguments of the file's functions by position instead of by keyword."""
    tree = ast.parse(text)
    changed = False
    for call, names in _calls(tree, signatures(text)):
        given = {keyword.arg: keyword for keyword in call.keywords}
        while len(call.args) < len(names) and names[len(call.args)] in given:
            keyword = given[names[len(call.args)]]
            call.args.append(keyword.value)
            call.keywords.remove(keyword)
            changed = True
    return _printed(tree) if changed else None


def split_sums(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """`x = a + b` by way of a local, for every operator."""
    return _through_locals(node, lambda value: isinstance(value, ast.BinOp), lambda value: None)


def split_chains(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """`x = f(y).view(z)` by way of a local for `f(y)`."""

    def inner(value: ast.expr) -> ast.Attribute | None:
        chained = isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)
        if not (chained and isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
            return None
        return value.func if isinstance(value.func.value, ast.Call) else None

    return _through_locals(node, lambda value: inner(value) is not None, inner)


def _through_locals(
    node: ast.FunctionDef, applies: Callable[[ast.expr], bool], holder: Callable[[ast.expr], ast.Attribute | None]
) -> ast.FunctionDef | None:
    """Assignments whose value applies take it, or what `holder` holds of it, from a local that is set before."""
    count = 0
    for block in list(blocks(node)):
        for index in range(len(block) - 1, -1, -1):
            statement = block[index]
            if not isinstance(statement, ast.Assign) or not applies(statement.value):
                continue
            target = statement.targets[0]
            if isinstance(target, ast.Name) and target.id.startswith(FRESH):
                continue
            name = f"{FRESH}_{count}"
            count += 1
            held = holder(statement.value)
            value = statement.value if held is None else held.value
            if held is None:
                statement.value = ast.Name(name, ast.Load())
            else:
                held.value = ast.Name(name, ast.Load())
            block.insert(index, ast.Assign([ast.Name(name, ast.Store())], value))
    return node if count else None


def collapsed_conditionals(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """`if c: x = a` and `else: x = b` as one conditional expression."""
    changed = False
    for block in blocks(node):
        for index, statement in enumerate(block):
            if not isinstance(statement, ast.If) or len(statement.body) != 1 or len(statement.orelse) != 1:
                continue
            yes, no = statement.body[0], statement.orelse[0]
            if not isinstance(yes, ast.Assign) or not isinstance(no, ast.Assign):
                continue
            if len(yes.targets) == 1 and isinstance(yes.targets[0], ast.Name):
                if [ast.dump(target) for target in yes.targets] == [ast.dump(target) for target in no.targets]:
                    block[index] = ast.Assign(yes.targets, ast.IfExp(statement.test, yes.value, no.value))
                    changed = True
    return node if changed else None


TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.Gt,
    ast.Gt: ast.Lt,
    ast.LtE: ast.GtE,
    ast.GtE: ast.LtE,
    ast.Eq: ast.Eq,
    ast.NotEq: ast.NotEq,
}


def turned_comparisons(node: ast.FunctionDef) -> ast.FunctionDef | None:
    """`b > a` for `a < b`, where both are names, attributes or constants."""
    changed = False
    for part in ast.walk(node):
        if isinstance(part, ast.Compare) and len(part.ops) == 1 and type(part.ops[0]) in TURNED:
            if all(
                isinstance(side, (ast.Name, ast.Attribute, ast.Constant)) for side in (part.left, part.comparators[0])
            ):
                part.left, part.comparators = part.comparators[0], [part.left]
                part.ops = [TURNED[type(part.ops[0])]()]
                changed = True
    return node if changed else None


def explicit_super(text: str) -> str | None:
    """`super(C, self)` for `super()`."""
    tree = ast.parse(text)
    changed = False
    for node in tree.body:
        for member in node.body if isinstance(node, ast.ClassDef) else ():
            if not isinstance(member, ast.FunctionDef) or not member.args.args or member.args.args[0].arg != "self":
                continue
            for part in ast.walk(member):
                if isinstance(part, ast.Call) and ast.unparse(part) == "super()":
                    assert isinstance(node, ast.ClassDef)
                    part.args = [ast.Name(node.name, ast.Load()), ast.Name("self", ast.Load())]
                    changed = True
    return _printed(tree) if changed else None


_OF_FUNCTIONS: tuple[tuple[Callable[[ast.FunctionDef], ast.FunctionDef | None], bool], ...] = (
    (functions.rename_locals, True),
    (functions.reverse_keywords, True),
    (functions.drop_annotations, True),
    (functions.annotate_locals, True),
    (functions.new_docstring, True),
    (functions.bare_strings_and_pass, False),
    (functions.alias_attributes, False),
    (functions.else_after_jump, True),
    (functions.no_else_after_jump, True),
    (functions.swap_branches, False),
    (functions.spell_out_conditionals, True),
    (functions.return_through_local, True),
    (functions.bare_return, True),
    (collapsed_conditionals, True),
    (turned_comparisons, False),
    (split_sums, False),
    (split_chains, False),
)
OF_FUNCTIONS = tuple(rewrite for rewrite, _ in _OF_FUNCTIONS)
"""Rewrites of one function, which can be made in a single place of a file too (`everywhere`)."""

SPELLINGS: tuple[Spelling, ...] = (
    Spelling("printed anew", printed_anew),
    Spelling("parenthesise", functions.parenthesise),
    Spelling("comment every line", functions.comment_every_line),
    Spelling("wrap in brackets", functions.wrap_in_brackets),
    Spelling("other quotes", other_quotes),
    Spelling("joined lines", joined_lines, common=False),
    Spelling("reversed methods", reversed_methods),
    Spelling("aliased imports", aliased_imports, common=False),
    Spelling("keywords for positions", keywords_for_positions),
    Spelling("positions for keywords", positions_for_keywords),
    Spelling("explicit super", explicit_super),
    *(Spelling(r.__name__.replace("_", " "), everywhere(r), common) for r, common in _OF_FUNCTIONS),
)
