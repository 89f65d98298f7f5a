"""Which families there are: upstream's own causal-LM mapping, read from its text."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from codegen.diagnostics import InputError, SourceError
from codegen.source import Release

MAPPING_FILE = "models/auto/modeling_auto.py"
MAPPING_NAME = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
FOLDERS_FILE = "models/auto/configuration_auto.py"
FOLDERS_NAME = "SPECIAL_MODEL_TYPE_TO_MODULE_NAME"


@dataclass(frozen=True, order=True)
class Family:
    """A model type of the mapping, its head class, and the modeling file that defines the class."""

    model_type: str
    head: str
    path: str


def discover(release: Release) -> tuple[Family, ...]:
    """Every type of the mapping, or those of a source without one, in name order. Raises InputError when the mapping is
    not where it is known to be."""
    if release.families is not None:
        return release.families
    pairs = _pairs(release, MAPPING_FILE, MAPPING_NAME)
    if not pairs:
        raise InputError(f"{MAPPING_FILE} of {release.version}: no pairs in {MAPPING_NAME}")
    folders = dict(_pairs(release, FOLDERS_FILE, FOLDERS_NAME))
    return tuple(sorted(Family(t, head, _file_of(release, t, head, folders)) for t, head in pairs))


def _text(release: Release, path: str) -> str:
    try:
        return release.text(path)
    except SourceError:
        return ""


def _pairs(release: Release, path: str, name: str) -> list[tuple[str, str]]:
    """The literal string pairs of a module-level ``NAME = OrderedDict([...])`` and of what ``NAME.update({...})`` adds
    to it; a name that the file imports from its neighbour is read there."""
    try:
        tree = ast.parse(release.text(path))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path} of {release.version} does not parse: {error}") from None
    found: list[tuple[str, str]] | None = None
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        target = node.target if isinstance(node, ast.AnnAssign) else (targets[0] if targets else None)
        if isinstance(target, ast.Name) and target.id == name and isinstance(node, ast.Assign | ast.AnnAssign):
            found = _literal_pairs(node)
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and name in {a.asname or a.name for a in node.names}:
            original = next(a.name for a in node.names if name == (a.asname or a.name))
            found = _pairs(release, f"{path.rpartition('/')[0]}/{node.module}.py", original)
        elif found is not None and isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            if ast.unparse(node.value.func) == f"{name}.update":
                found = [*found, *_literal_pairs(node.value)]
    if found is None:
        raise InputError(f"{path} of {release.version} defines no {name}")
    return found


def _literal_pairs(node: ast.AST) -> list[tuple[str, str]]:
    """Two-tuples and items of a dict display whose both sides are strings, in the order of the text."""
    sides: list[tuple[ast.expr | None, ast.expr]] = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Tuple) and len(inner.elts) == 2:
            sides.append((inner.elts[0], inner.elts[1]))
        elif isinstance(inner, ast.Dict):
            sides += zip(inner.keys, inner.values, strict=True)
    return [
        (key.value, value.value)
        for key, value in sides
        if isinstance(key, ast.Constant)
        and isinstance(value, ast.Constant)
        and isinstance(key.value, str)
        and isinstance(value.value, str)
    ]


def _file_of(release: Release, model_type: str, head: str, folders: dict[str, str]) -> str:
    """The file that defines the head class: the type's own folder first, then any modeling file. A file of the type's
    own that is cut short or unreadable is still its file; reading it says what is wrong."""
    needle = f"class {head}("
    folder = folders.get(model_type, model_type.replace("-", "_"))
    own = f"models/{folder}/modeling_{folder}.py"
    for path in [own, *sorted(release.files)]:
        stem = path.rsplit("/", 1)[-1]
        if path in release.files and stem.startswith("modeling_") and needle in _text(release, path):
            return path
    if own in release.files:
        return own
    raise InputError(f"no modeling file of {release.version} defines {head} (type {model_type})")
