"""Variants of registered packages, found by a model's classes.

A class imported by the name that the compiler was told has the variants of that name. A class of the same text in
another module, such as upstream's loader of remote code makes for each checkpoint, gets variants of its own: the
generated file is run once more, with the imports from the model's package meaning that module. What counts is the text
of the modeling file, compared by its digest.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from threading import RLock
from types import CodeType, ModuleType
from typing import Any

from runtime.fingerprint import text_digest
from runtime.guard import check_upstream, guarded, import_variants
from runtime.registration import IMPORTED, Package, place_of, registered


class OtherTextError(LookupError):
    """A model type is registered, and these classes are not of the text that its variants were derived from."""


@dataclass(frozen=True)
class _Bound:
    """Variants of one modeling module: of which package, the classes it had, and the generated module that derives
    from them."""

    package: Package
    classes: Mapping[str, Any]
    variants: ModuleType


_bound: dict[tuple[str, str], list[_Bound]] = {}  # by generated module and modeling module
_lock = RLock()


def refused(target: str) -> dict[str, str]:
    """Model type -> why a registered package has no variants of it."""
    return {name: why for package in registered() for name, why in package.refused[target].items()}


def families(target: str) -> dict[str, str]:
    """Model type -> generated module, over all registered packages."""
    return {name: module for package in registered() for name, module in package.families[target].items()}


def is_ours(module: str) -> bool:
    """Whether a module belongs to a registered package."""
    return any(module.startswith(f"{package.name}.") for package in registered())


def variants_of(target: str, cls: type) -> ModuleType | None:
    """The generated module with the variants of a class's modeling file; None if no package has it.

    Raises:
        UpstreamChangedError: they are for another release, in which what they rely on means something else.
    """
    if not registered():
        return None
    for package in registered():
        generated = package.modules[target].get(cls.__module__)
        if generated is not None and package.loader == IMPORTED:
            return _imported(package, generated)
    module = sys.modules.get(cls.__module__)
    with _lock:
        found = None if module is None else _package_of(target, module)
        if module is None or found is None:
            return None
        package, generated = found
        known = _bound.setdefault((generated, module.__name__), [])
        for one in known:
            if one.package is package and one.classes.get(cls.__name__) is cls:
                return one.variants
        if getattr(module, cls.__name__, None) is not cls:
            return None  # of an older run of the module, which upstream's loader has run anew since
        name = f"{generated}[{module.__name__}]" + (f"#{len(known) + 1}" if known else "")
        known.append(_Bound(package, _classes(module), _run(name, generated, package, module)))
        return known[-1].variants


def variants_of_type(target: str, model_type: str, classes: Iterable[type] = ()) -> ModuleType | None:
    """The generated module for a model type; None if no package has the type.

    Args:
        classes: those of a model. Without any, what is imported decides: its module, or the one that upstream's loader
            has made.
    Raises:
        OtherTextError: the classes are of another text; or nothing was loaded, or several versions were.
        UpstreamChangedError: as `variants_of`.
    """
    package = next((p for p in registered() if model_type in p.families[target]), None)
    if package is None:
        return None
    generated = package.families[target][model_type]
    places = [name for name, module in package.modules[target].items() if module == generated]
    given = list(dict.fromkeys(classes))
    for cls in given:
        found = variants_of(target, cls)
        if found is not None and found.__name__.partition("[")[0] == generated:
            return found
    if given:
        raise OtherTextError(other_text(package, given[0]))
    if package.loader == IMPORTED:
        return _imported(package, generated)
    stem = f".{places[0].rpartition('.')[2]}"
    loaded = [m for name, m in list(sys.modules.items()) if name.endswith(stem) and not is_ours(name)]
    fitting = [m for m in loaded if (of := _package_of(target, m)) is not None and of[1] == generated]
    if len(fitting) != 1:
        count = "none of its code was loaded yet" if not fitting else f"{len(fitting)} copies of its code are loaded"
        raise OtherTextError(
            f"model type {model_type!r} comes with its checkpoints (trust_remote_code), and {count}: load the model"
            " first and patch it, rather than its type"
        )
    first = next(iter(c for c in _classes(fitting[0]).values() if c.__module__ == fitting[0].__name__))
    return variants_of(target, first)


def check_imported(module: str) -> None:
    """Compares the release that is installed with the one that a generated module is for, which was imported by its
    own name.

    Raises:
        UpstreamChangedError: as `variants_of`.
    """
    for package in registered():
        if package.loader == IMPORTED and module in package.variants:
            check_upstream(module, _models(package, module))


def _imported(package: Package, generated: str) -> ModuleType:
    """A generated module that derives from classes with one name everywhere."""
    return import_variants(generated, _models(package, generated))


def _models(package: Package, generated: str) -> Path | None:
    """The folder of the modeling file that a generated module is of."""
    place = place_of(package, f"{generated.rpartition('.')[2]}.py")
    return None if place is None else place.parent


def other_text(package: Package, cls: type) -> str:
    """Why a class has no variants though its model type is registered."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return (
        f"{cls.__module__}.{cls.__name__} is not of the code that {package.name} was generated from:"
        f" {file or 'its file'} is another text, or was loaded again since. Regenerate with"
        f" `{package.command}`, or build the model again"
    )


def _package_of(target: str, module: ModuleType) -> tuple[Package, str] | None:
    """The package that was generated from the text of a module, and its generated module."""
    file = getattr(module, "__file__", None)
    named = [p for p in registered() if file is not None and Path(file).name in p.sources]
    if file is None or not named:
        return None
    try:
        digest = text_digest(Path(file).read_bytes())
    except OSError:
        return None
    stem = Path(file).stem
    for package in named:
        generated = package.modules[target].get(f"{package.module}.{stem}")
        if generated is not None and package.sources[f"{stem}.py"] == digest:
            return package, generated
    return None


def _classes(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, type)}


class _Redirected(SourceFileLoader):
    """Runs a generated file with the imports from one package taken from another."""

    def __init__(self, name: str, path: str, package: str, instead: str) -> None:
        super().__init__(name, path)
        self._package, self._instead = package, instead

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                if f"{node.module}.".startswith(f"{self._package}."):
                    node.module = f"{self._instead}{node.module.removeprefix(self._package)}".removeprefix(".")
        return compile(tree, path, "exec", dont_inherit=True)


def _run(name: str, generated: str, package: Package, module: ModuleType) -> ModuleType:
    """A copy of a generated module whose classes derive from those of ``module``."""
    parent, _, stem = generated.rpartition(".")
    path = str(Path(str(importlib.import_module(parent).__file__)).parent / f"{stem}.py")
    loader = _Redirected(name, path, package.module, module.__name__.rpartition(".")[0])
    models = Path(str(module.__file__)).parent
    with guarded(generated, models):
        return _ran(name, path, loader)


def _ran(name: str, path: str, loader: SourceFileLoader) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    copy = importlib.util.module_from_spec(spec)
    sys.modules[name] = copy  # pickle and copy find its classes by this name
    try:
        loader.exec_module(copy)
    except BaseException:
        del sys.modules[name]
        raise
    return copy
