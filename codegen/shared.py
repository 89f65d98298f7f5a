"""Which derived functions the runtime already has: the variant imports those instead of repeating them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from codegen.derive import DerivedFunction, EmittedModule
from codegen.syntax import code, docstring_removed

RUNTIME = Path(__file__).parent.parent / "runtime"
LIBRARIES = {"qeff": ("qeff/attention.py",)}


def shared_functions(emitted: EmittedModule) -> tuple[list[DerivedFunction], dict[str, str]]:
    """Splits the derived functions into those to write out and those that say the same as a runtime function of the
    same name (name -> module). "The same" is upstream's text after the rules, with annotations and docstrings aside."""
    local: list[DerivedFunction] = []
    shared: dict[str, str] = {}
    library = _library(emitted.target.name)
    for function in emitted.functions:
        name = function.node.name.value
        ours = library.get(name)
        same = ours is not None and ours[1] == _meaning(
            code(docstring_removed(function.node).with_changes(decorators=[]))
        )
        if ours is not None and same:
            shared[name] = ours[0]
        else:
            local.append(function)
    return local, shared


@cache
def _library(target: str) -> dict[str, tuple[str, str]]:
    """Function name -> (runtime module, meaning), read from the runtime's text; nothing is imported."""
    result = {}
    for path in LIBRARIES.get(target, ()):
        tree = ast.parse((RUNTIME / path).read_text("utf-8"))
        module = "runtime." + path.removesuffix(".py").replace("/", ".")
        for node in tree.body:
            if isinstance(node, ast.FunctionDef):
                result[node.name] = (module, _meaning(ast.unparse(node)))
    return result


def _meaning(text: str) -> str:
    """The function's syntax tree without annotations, docstring and decorators."""
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    for inner in ast.walk(node):
        if isinstance(inner, ast.arg):
            inner.annotation = None
        if isinstance(inner, ast.FunctionDef):
            inner.returns = None
            inner.decorator_list = []
            if ast.get_docstring(inner) is not None:
                inner.body = inner.body[1:]
    return ast.dump(node)


def runtime_text(module: str) -> str:
    """The source of a module that `shared_functions` named."""
    return (RUNTIME.parent / (module.replace(".", "/") + ".py")).read_text("utf-8")
