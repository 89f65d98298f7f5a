"""Which class of a folder is its causal LM, and of which model type: said by the folder itself, nowhere listed.

Looked for in this order, the first that says something counts: ``auto_map`` of ``config.json``; registrations with
upstream's auto class in the folder's files; the one class that can generate.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codegen.diagnostics import InputError
from codegen.discovery import Family
from codegen.own.import_path import is_name

AUTO_CLASS = "AutoModelForCausalLM"
HEAD_ENDING = "ForCausalLM"  # by convention, upstream's and everybody's
CAN_GENERATE = "GenerationMixin"
CONFIG_FILE = "config.json"
BEGINNING = "modeling_"

_SAY_WHICH = (
    f'say which with "auto_map": {{"{AUTO_CLASS}": "modeling_<name>.<Class>"}} in {CONFIG_FILE}, or'
    f' with <Class>.register_for_auto_class("{AUTO_CLASS}") in the file'
)


@dataclass(frozen=True)
class Heads:
    """The families of a folder, and how they were found; ``is_remote_code``: upstream's loader is told of them."""

    families: tuple[Family, ...]
    evidence: str
    is_remote_code: bool


@dataclass(frozen=True)
class _Files:
    """The Python files of a folder by name, parsed; ``unusable``: those that cannot be, with what is wrong. They count
    only where something is taken from them: a folder also has scripts."""

    folder: Path
    trees: Mapping[str, ast.Module]
    unusable: Mapping[str, InputError]

    @property
    def modeling(self) -> Mapping[str, ast.Module]:
        return {name: tree for name, tree in self.trees.items() if name.startswith(BEGINNING)}

    def file_of(self, cls: str) -> str | None:
        return next((name for name, tree in self.modeling.items() if cls in _classes(tree)), None)


def read_text(path: Path) -> str:
    """A file of the user's. Raises InputError."""
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})") from None


def find_heads(folder: Path) -> Heads:
    """The causal LMs of a folder. Raises InputError where there is none, more than one may be meant, or a model type
    cannot be read."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    files = _files(folder)
    if not files.modeling:
        raise InputError(f"{folder} holds no {BEGINNING}<name>.py")
    config = _config(folder)
    auto_map = config.get("auto_map")
    mapped = auto_map.get(AUTO_CLASS) if isinstance(auto_map, dict) else None
    pairs: list[tuple[str, str | None]]
    if mapped is not None:
        pairs = [_of_auto_map(files, mapped)]
        evidence = f"auto_map in {CONFIG_FILE}"
    elif pairs := _registered(files):
        evidence = f"registered with {AUTO_CLASS}"
    else:
        pairs = [(_by_structure(files), None)]
        evidence = f"the one class with {CAN_GENERATE}"
    families = []
    for head, configuration in pairs:
        file = files.file_of(head)
        if file is None:
            raise InputError(f"no {BEGINNING}<name>.py of {folder} defines {head} ({evidence})")
        if not is_name(stem := file.removesuffix(".py")):
            raise InputError(f"{folder / file}: {stem!r} is no name of a Python module; rename the file")
        families.append(Family(_model_type(files, file, head, configuration), head, file))
    stated = config.get("model_type")
    if len(families) == 1 and stated is not None and stated != families[0].model_type:
        raise InputError(
            f"{folder / CONFIG_FILE} says model_type {stated!r}, the configuration class {families[0].model_type!r}"
        )
    types = [family.model_type for family in families]
    if twice := sorted({t for t in types if types.count(t) > 1}):
        raise InputError(f"two causal LMs of model type {twice[0]!r} in {folder}: {', '.join(h for h, _ in pairs)}")
    return Heads(tuple(sorted(families)), evidence, isinstance(auto_map, dict))


def _files(folder: Path) -> _Files:
    trees: dict[str, ast.Module] = {}
    unusable: dict[str, InputError] = {}
    for path in sorted(folder.glob("*.py")):
        try:
            trees[path.name] = _parsed(path)
        except InputError as error:
            if path.name.startswith(BEGINNING):
                raise
            unusable[path.name] = error
    return _Files(folder, trees, unusable)


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(read_text(path))
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno}:{error.offset}: a syntax error: {error.msg}") from None
    except ValueError as error:  # a NUL byte
        raise InputError(f"{path} is no Python: {error}") from None


def _config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    if not path.exists():
        return {}
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path} is no JSON object")
    return found


# --------------------------------------------------------------------------------------------------------------- heads


def _of_auto_map(files: _Files, value: object) -> tuple[str, None]:
    """``modeling_x.Class``; with ``repository--`` in front the code is elsewhere."""
    place = files.folder / CONFIG_FILE
    if not isinstance(value, str) or value.count(".") != 1:
        raise InputError(f"{place}: auto_map[{AUTO_CLASS!r}] is {value!r}, not <module>.<Class>")
    repository, _, reference = value.rpartition("--")
    if repository:
        raise InputError(f"{place}: the code is in another repository, {repository}; get it and pass its folder")
    module, _, head = reference.partition(".")
    if f"{module}.py" not in files.modeling:
        raise InputError(f"{place}: auto_map names {value}, and there is no {BEGINNING}<name>.py of that name")
    if head not in _classes(files.modeling[f"{module}.py"]):
        raise InputError(f"{place}: auto_map names {value}, and {module}.py has no class {head}")
    return head, None


def _registered(files: _Files) -> list[tuple[str, str | None]]:
    """``AutoModelForCausalLM.register(Config, Head)`` and ``Head.register_for_auto_class("AutoModelForCausalLM")``:
    head and, where it is told, configuration class."""
    found: dict[str, str | None] = {}
    for call in (node for tree in files.trees.values() for node in ast.walk(tree) if isinstance(node, ast.Call)):
        if not isinstance(call.func, ast.Attribute):
            continue
        owner = _last(call.func.value)
        given = [*call.args, *(k.value for k in call.keywords if k.arg in ("config_class", "model_class"))]
        if call.func.attr == "register" and owner == AUTO_CLASS and len(given) >= 2:
            found[_last(given[1])] = _last(given[0])
        elif call.func.attr == "register_for_auto_class" and owner:
            if any(isinstance(a, ast.Constant) and a.value == AUTO_CLASS for a in (*call.args, *given)):
                found.setdefault(owner, None)
    return sorted(found.items())


def _by_structure(files: _Files) -> str:
    """The class that can generate; where several can, the one that is named like a causal LM."""
    able = [
        name
        for tree in files.modeling.values()
        for name, node in _classes(tree).items()
        if any(_last(base) == CAN_GENERATE for cls in _lineage(tree, node) for base in cls.bases)
    ]
    named = [name for name in able if name.endswith(HEAD_ENDING)] if len(able) > 1 else able
    if len(named) == 1:
        return named[0]
    if not able:
        raise InputError(f"no class of {files.folder} derives from {CAN_GENERATE}, as a causal LM does; {_SAY_WHICH}")
    raise InputError(f"{files.folder} has more than one causal LM: {', '.join(sorted(named or able))}; {_SAY_WHICH}")


# --------------------------------------------------------------------------------------------------------- model types


def _model_type(files: _Files, file: str, head: str, configuration: str | None) -> str:
    """The literal ``model_type`` of the head's configuration class."""
    tree = files.trees[file]
    name = configuration or _configuration_of(tree, _classes(tree)[head])
    if name is None:
        raise InputError(
            f"{file}: {head} names no configuration class; it needs config_class = <Class>, or config: <Class>"
        )
    home = _home_of(files, file, name)
    for cls in _lineage(files.trees[home], _classes(files.trees[home])[name]):
        value = _assigned(cls, "model_type")
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
            return value.value
    raise InputError(f'{files.folder / home}: {name} has no model_type = "..."')


def _configuration_of(tree: ast.Module, head: ast.ClassDef) -> str | None:
    lineage = _lineage(tree, head)
    for cls in lineage:
        if (value := _assigned(cls, "config_class")) is not None:
            return _last(value) or None
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and _last(node.target) == "config":
                return _last(node.annotation) or None
    for cls in lineage:
        for node in cls.body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                for argument in node.args.args[1:]:
                    if argument.annotation is not None:
                        return _last(argument.annotation) or None
    return None


def _home_of(files: _Files, file: str, name: str) -> str:
    """The file of the folder that defines a class which ``file`` defines or imports."""
    if name in _classes(files.trees[file]):
        return file
    for node in ast.walk(files.trees[file]):
        if isinstance(node, ast.ImportFrom) and name in {a.asname or a.name for a in node.names}:
            home = f"{(node.module or '__init__').rsplit('.', 1)[-1]}.py"
            if home in files.unusable:
                raise files.unusable[home]
            if home not in files.trees:
                where = "." * node.level + (node.module or "")
                raise InputError(f"{file} imports its configuration {name} from {where}: {files.folder} has no {home}")
            if name not in _classes(files.trees[home]):
                raise InputError(f"{file} imports {name} from {home}, which defines no such class")
            return home
    raise InputError(f"{file} neither defines nor imports its configuration class {name}")


def _assigned(cls: ast.ClassDef, name: str) -> ast.expr | None:
    """The value of ``name = value`` in the body of a class."""
    for node in cls.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and any(
            isinstance(t, ast.Name) and t.id == name for t in targets
        ):
            return node.value
    return None


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _lineage(tree: ast.Module, cls: ast.ClassDef) -> list[ast.ClassDef]:
    """The class and its bases in the file, nearest first."""
    known = _classes(tree)

    def up(node: ast.ClassDef, seen: tuple[str, ...]) -> Iterator[ast.ClassDef]:
        yield node
        for base in node.bases:
            if isinstance(base, ast.Name) and base.id in known and base.id not in seen:
                yield from up(known[base.id], (*seen, base.id))

    return list(up(cls, (cls.name,)))


def _last(node: ast.AST) -> str:
    """``c`` of ``a.b.c``, of a name or of a quoted name; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.rsplit(".", 1)[-1]
    return node.id if isinstance(node, ast.Name) else ""
