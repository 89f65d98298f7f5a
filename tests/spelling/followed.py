"""Whether a variant follows upstream where its meaning changed: by its own text, by what it inherits, or not at all."""

import ast
from enum import Enum

from spellings import Signatures
from variants import Compiled, differences

from codegen.targets import TARGETS
from runtime.fingerprint import Definition, definitions, fingerprint, methods
from runtime.fingerprint.reliance import Reliance


class Followed(Enum):
    REFUSED = "refused"
    CARRIED = "carried"  # the variant's own text says something else now
    INHERITED = "inherited"  # the variant's text is the same and runs what changed, upstream's
    REPLACED = "replaced"  # the text is the same and runs something of its own: numbers decide


def follows(before: Compiled, after: Compiled, upstream: str, where: str, signatures: Signatures) -> Followed:
    """What became of a change of `where` in upstream's text; `before` and `after` are the variants without and with."""
    lost = {f.model_type for f in before.generated} - {f.model_type for f in after.generated}
    if lost:
        return Followed.REFUSED
    assert before.text is not None and after.text is not None
    if before.text != after.text and differences(before.text, after.text, signatures):
        return Followed.CARRIED
    return Followed.INHERITED if where in runs(upstream, after.text, after.target) else Followed.REPLACED


def runs(upstream: str, variant: str, target: str) -> set[str]:
    """What of upstream's file a variant runs: everything that its methods and those it inherits rely on, but for
    what it overrides and what the runtime does in its place."""
    merged: dict[str, Definition] = definitions(ast.parse(upstream))
    tree = ast.parse(variant)
    ours = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("runtime.")
        for alias in node.names
    }
    prefix = TARGETS[target].prefix
    overridden = set()
    roots = []
    for name, node in methods(tree).items():
        owner, _, method = name.removeprefix(prefix).rpartition(".")
        if isinstance(node, ast.ClassDef):
            roots += [method, f"{method}.forward", f"{method}.__init__"]
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and part.id in ours:
                part.id += " of the runtime"
        called = f"{owner}.{method}" if owner else method
        merged[called] = node
        overridden.add(called)
        roots.append(called)
    for name in _replaced(tree, target):
        merged.pop(f"{name}.forward", None)
        merged.pop(name, None) if name.startswith("eager") else None
    return Reliance(merged).of(roots) - overridden


def _replaced(tree: ast.Module, target: str) -> set[str]:
    """Classes whose forward the runtime's norms or experts stand for, and the eager functions that its attention
    stands for."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                label = ast.unparse(value)
                if isinstance(key, ast.Name) and ("RMSNorm" in label or "LigerNorm" in label):
                    found.add(key.id)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).startswith("attention_for"):
            found |= {a.id for a in node.args if isinstance(a, ast.Name) and a.id.startswith("eager")}
    return found


def drifts(before: str, after: str, where: str) -> bool:
    """Whether the definition has another fingerprint, or is not there any more."""
    one, other = (methods(ast.parse(text)).get(where) for text in (before, after))
    return one is None or other is None or fingerprint(one) != fingerprint(other)
