"""Verification of registered packages: every process loads the user's models as their users do, then works as ever."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from runtime import registration
from runtime.verify.family import Request
from runtime.verify.pool import Work
from runtime.verify.results import FamilyResult
from runtime.verify.targets import Target


class CannotLoadError(ValueError):
    """The package or a model of it cannot be imported; the message says why."""


@dataclass(frozen=True)
class OwnModel:
    """A causal LM of the user's: its type, the name of its modeling file without `.py`, its class."""

    model_type: str
    stem: str
    head: str


@dataclass(frozen=True)
class OwnPackage:
    """A generated package and what it is of.

    folder: of the package; source: of the models; module: the package that their classes are imported from; loader: by
    whom, see `runtime.registration.Package`.
    """

    folder: str
    source: str
    module: str
    loader: str
    models: tuple[OwnModel, ...]

    def load(self) -> None:
        """Registers the package with both runtimes and its models with transformers' auto classes; once is enough.

        Raises:
            CannotLoadError: something cannot be imported, or is not what the compiler saw.
        """
        root, name = _root_of(Path(self.folder))
        if any(package.name == name for package in registration.registered()):
            return
        _put_on_path(root)
        if self.loader == registration.IMPORTED:
            _put_on_path(Path(self.source).parents[self.module.count(".")])
        try:
            registration.register(name)
            for model in self.models:
                self._load(model)
        except Exception as error:
            if name in {package.name for package in registration.registered()}:
                registration.unregister(name)
            raise CannotLoadError(f"{type(error).__name__}: {error}") from error

    def _load(self, model: OwnModel) -> None:
        if self.loader == registration.IMPORTED:
            head: Any = getattr(importlib.import_module(f"{self.module}.{model.stem}"), model.head)
        else:
            head = get_class_from_dynamic_module(f"{model.stem}.{model.head}", self.source)
        config = head.config_class
        if config is None or config.model_type != model.model_type:
            found = getattr(config, "model_type", None)
            raise CannotLoadError(f"{model.head}.config_class has model_type {found!r}, not {model.model_type!r}")
        AutoConfig.register(model.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, head, exist_ok=True)


@dataclass(frozen=True)
class _Work:
    """A target's work in a process that has loaded the package."""

    package: OwnPackage
    work: Work

    def __call__(self, request: Request, progress: Callable[[str], None]) -> FamilyResult:
        self.package.load()
        return self.work(request, progress)


def verified_by(target: Target, package: OwnPackage) -> Target:
    """The target for the models of a package, which is loaded here too. Raises CannotLoadError."""
    package.load()
    return replace(target, work=_Work(package, target.work))


def _root_of(folder: Path) -> tuple[Path, str]:
    """The folder to import from, and the name of a package in it, found by `__init__.py` files."""
    names = [folder.name]
    at = folder.parent
    while (at / "__init__.py").is_file():
        names.insert(0, at.name)
        at = at.parent
    return at, ".".join(names)


def _put_on_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
