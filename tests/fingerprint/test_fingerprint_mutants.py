"""Upstream's own methods, rewritten: what keeps the meaning keeps the fingerprint, what changes it changes it.

The rewrites work on the text or on a copy of the tree and know nothing of the canonical form. Nothing is random: every
rewrite is made wherever it applies in the chosen files.
"""

import ast
import copy
import importlib.util
import time
from collections import Counter
from pathlib import Path

import pytest
from function_mutants import Mutants
from function_rewrites import TEXT_REWRITES, TREE_REWRITES, drop_annotations

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
        for label in Mutants(node):
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
