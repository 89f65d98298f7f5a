"""What must not be there: imports across the packages, family names, regular expressions, clocks, oversized modules."""

import ast
import importlib.util
import io
import keyword
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from codegen.deviations import REFUSED
from codegen.discovery import discover
from codegen.source import installed

ROOT = Path(importlib.util.find_spec("codegen").origin).parent.parent  # type: ignore[union-attr, arg-type]
PACKAGES = ("codegen", "runtime", "generated")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SHARED = "runtime.fingerprint"  # what the compiler records and the runtime compares
DISPATCH = "codegen/verification.py"  # the one module of the compiler that hands over to the runtime

LONGEST = 430
LONG = {
    "codegen/store.py": "a commit, its undo and its recovery are one protocol; remove when they can be told apart",
    "codegen/recognize/config_flow.py": "follows values through a class; remove when it is split by statement kind",
}

OUR_OWN_WORDS = {
    "codegen": "this package, and a model type; a rule that named the type would say its classes' prefix too",
    "git": "the program that holds revisions, and a model type",
    "GemmaCustomRMSNormAIC": "the contract fixes this name of a runtime class",
}
ENDINGS = ("For", "LMHead", "With", "Model", "Decoder")  # what follows a family's prefix in the name of its head
DEVIATIONS = "codegen/deviations/"  # the one place where a family may be named: data
WHOLE_TEXT = ("codegen/recognize", "codegen/rules", "codegen/targets")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported(path: Path) -> set[str]:
    """Everything the file imports, wherever in it."""
    return set(_imports(ast.walk(_tree(path))))


def _at_import_time(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run when the module is imported."""
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            yield from _at_import_time(
                [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt | ast.ExceptHandler)]  # type: ignore[misc]
            )


def _tops(imported: set[str]) -> set[str]:
    return {name.split(".")[0] for name in imported}


def _of(package: str) -> list[Path]:
    return [path for path in MODULES if _name(path).startswith(f"{package}/")]


def test_there_is_something_to_look_at() -> None:
    assert all(len(_of(package)) > 20 for package in PACKAGES)


@pytest.mark.parametrize("path", _of("codegen"), ids=_name)
def test_the_compiler_imports_text_only(path: Path) -> None:
    banned = {"torch", "transformers", "runtime", "generated", "tests"}
    imported = {name for name in _imported(path) if not f"{name}.".startswith(f"{SHARED}.")}
    found = _tops(imported) & banned
    if _name(path) == DISPATCH:
        assert found == {"runtime"}
        assert not _tops(set(_imports(_at_import_time(_tree(path).body)))) & banned, "only when the command runs"
    else:
        assert not found


@pytest.mark.parametrize("path", _of(SHARED.replace(".", "/")), ids=_name)
def test_what_both_import_is_standard_library_alone(path: Path) -> None:
    others = {name for name in _imported(path) if not f"{name}.".startswith(f"{SHARED}.")}
    assert _tops(others) <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", _of("runtime"), ids=_name)
def test_the_runtime_knows_no_compiler(path: Path) -> None:
    assert not _tops(_imported(path)) & {"codegen", "libcst", "black", "tests"}


@pytest.mark.parametrize("path", _of("generated"), ids=_name)
def test_variants_know_no_compiler(path: Path) -> None:
    imported = _tops(_imported(path))
    assert not imported & {"codegen", "generated", "libcst", "tests"}
    assert imported <= {"torch", "transformers", "runtime"} | set(sys.stdlib_module_names)


def test_the_index_of_variants_is_data() -> None:
    for path in (ROOT / "generated").rglob("__init__.py"):
        assert not _imported(path)


@pytest.mark.parametrize(
    ("layer", "banned"),
    [
        ("recognize", ("rules", "targets", "derive", "driver", "emit", "generation", "store")),
        ("rules", ("targets", "derive", "driver", "emit", "generation", "store")),
        ("targets", ("derive", "driver", "emit", "generation", "store")),
        ("emit", ("generation", "store", "presentation", "review")),
    ],
)
def test_layers_look_down_only(layer: str, banned: tuple[str, ...]) -> None:
    for path in _of(f"codegen/{layer}"):
        upwards = {
            name
            for name in _imported(path)
            for b in banned
            if name == f"codegen.{b}" or name.startswith(f"codegen.{b}.")
        }
        assert not upwards, f"{_name(path)} imports {upwards}"


def test_loading_the_whole_compiler_loads_no_torch() -> None:
    """The import graph above, checked once for what libraries import on their own."""
    modules = [_name(p).removesuffix(".py").replace("/", ".").removesuffix(".__init__") for p in _of("codegen")]
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)\n"
        f"heavy |= {{m for m in sys.modules if m.startswith('runtime.') and not m.startswith({SHARED!r})}}\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_guard_loads_nothing_heavy() -> None:
    """It is imported before anybody knows whether a variant will be used."""
    script = (
        "import sys, runtime.guard\n"
        "heavy = {'torch', 'transformers', 'tomllib', 'packaging'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-S", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- names of families


@cache
def _types() -> frozenset[str]:
    return frozenset(f.model_type for f in discover(installed())) - OUR_OWN_WORDS.keys()


@cache
def _prefixes() -> frozenset[str]:
    """``Llama`` of ``LlamaForCausalLM``; those of up to three letters are words of other meanings too."""
    found = set()
    for family in discover(installed()):
        ends = [at for ending in ENDINGS if (at := family.head.find(ending, 1)) > 0]
        prefix = family.head[: min(ends)] if ends else family.head
        if len(prefix) > 3:
            found.add(prefix)
    return frozenset(found)


def _words(text: str) -> Iterator[str]:
    """Runs of letters, digits, ``_`` and ``-``."""
    word = ""
    for char in text + " ":
        if char.isalnum() or char in "_-":
            word += char
        elif word:
            yield word
            word = ""


@cache
def _names_a_family(word: str) -> bool:
    if word in OUR_OWN_WORDS:
        return False
    pieces = {piece for part in word.split("-") for piece in part.split("_") if len(piece) > 3}
    if word in _types() or pieces & _types():
        return True
    return any(
        word.startswith(prefix) and (len(word) == len(prefix) or word[len(prefix)].isupper()) for prefix in _prefixes()
    )


def _code_words(path: Path) -> Iterator[tuple[int, str]]:
    """Identifiers and words of strings, docstrings left out."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield from ((node.lineno, word) for word in _words(node.value))
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                yield from ((getattr(node, "lineno", 0), part) for part in value.split("."))


def _all_words(path: Path) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type in (tokenize.NAME, tokenize.STRING, tokenize.COMMENT) and not keyword.iskeyword(token.string):
            yield from ((token.start[0], word) for word in _words(token.string))


@pytest.mark.parametrize("path", [p for p in _of("codegen") if not _name(p).startswith(DEVIATIONS)], ids=_name)
def test_no_family_is_named(path: Path) -> None:
    """In recognizers, rules and targets not even a comment names one; elsewhere no code does."""
    whole = _name(path).startswith(WHOLE_TEXT)
    words = _all_words(path) if whole else _code_words(path)
    assert not [f"{_name(path)}:{line}: {word}" for line, word in words if _names_a_family(word)]


def test_deviations_are_data_about_families_of_the_mapping() -> None:
    types = {f.model_type for f in discover(installed())}
    assert set(REFUSED) <= types
    assert all(one.reason and one.until for one in REFUSED.values())
    for path in _of(DEVIATIONS.removesuffix("/")):
        code = [n for n in ast.walk(_tree(path)) if isinstance(n, ast.FunctionDef | ast.If | ast.For | ast.Lambda)]
        assert not code


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("llama", True),
        ("LlamaAttention", True),
        ("is_gemma2", True),
        ("bert-generation", True),
        ("modeling_mixtral", True),
        ("blt", True),
        ("git", False),
        ("digit", False),
        ("CaseAttention", False),
        ("Mambas", False),
        ("GemmaCustomRMSNormAIC", False),
    ],
)
def test_what_counts_as_a_name(word: str, named: bool) -> None:
    assert _names_a_family(word) is named


def test_own_words_are_still_needed() -> None:
    used = {word for path in _of("codegen") for _, word in _all_words(path)}
    assert set(OUR_OWN_WORDS) <= used


# -------------------------------------------------------------------------------------------------------------- habits


@pytest.mark.parametrize("path", _of("codegen"), ids=_name)
def test_no_regular_expressions_and_no_clock(path: Path) -> None:
    """Syntax is read from trees; and the same input gives the same bytes."""
    assert not _tops(_imported(path)) & {"re", "regex", "time", "datetime", "random", "uuid", "secrets", "locale"}
    environment = [n for n in ast.walk(_tree(path)) if isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv")]
    assert not environment


@pytest.mark.parametrize("path", [*_of("codegen"), *_of("runtime")], ids=_name)
def test_modules_are_small_and_named_for_what_they_hold(path: Path) -> None:
    assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")
    lines = len(path.read_text("utf-8").splitlines())
    if _name(path) in LONG:
        assert lines > LONGEST, f"{_name(path)} needs no exception any more"
    else:
        assert lines <= LONGEST
    assert ast.get_docstring(_tree(path)), "a module says what it is for"


def test_long_modules_exist() -> None:
    assert set(LONG) <= {_name(path) for path in MODULES}


def test_no_two_modules_of_tests_have_one_name() -> None:
    """They are in no package: pytest takes the second of a name for the first, and stops."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    assert not {name for name in names if names.count(name) > 1}
