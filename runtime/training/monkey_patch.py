"""The registry of patches: model type and patch type -> a function that patches a model, or what is built later.

What regraft generated is found through ``generated.rmpad``, whose modules register themselves when they are imported;
a family is imported when it is first asked for. What a user registers comes before what was generated.
"""

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeVar, cast, overload
from weakref import WeakKeyDictionary

from torch import nn

from runtime.guard import check_upstream, explain_unknown, import_variants
from runtime.training import swapping
from runtime.training.diagnostics import PatchError, call, listed, nearest, warn
from runtime.training.features import KEYWORDS
from runtime.training.model_types import found_model_type, model_type_of
from runtime.training.packaged import PackagedPatches
from runtime.training.patch_functions import Patch, Registered
from runtime.training.patching import PatchReport, PatchReports, undo_everything, undo_model

logger = logging.getLogger(__name__)

_Function = TypeVar("_Function", bound=Patch)

_MODEL = "model"


class UnknownPatchError(PatchError):
    """Nothing is registered under this model type, or not under this patch type."""


class RefusedFamilyError(PatchError):
    """The compiler derives nothing for this model type.

    Attributes:
        family: the model type.
        reason: why not.
    """

    def __init__(self, family: str, reason: str) -> None:
        super().__init__(f"model type {family!r} is not supported: {reason}")
        self.family = family
        self.reason = reason


class MonkeyPatcher(Mapping[str, Mapping[str, Patch]]):
    """Registers and applies patches. ``MONKEY_PATCHER`` is the one that everybody uses.

    As a mapping: model type -> patch type -> function, over what is registered and what was generated. To look a
    generated family up imports it; to iterate over the types does not. A look-up never adds an entry.

    Args:
        index: a package that lists generated families in ``FAMILIES`` (model type -> module) and ``REFUSED`` (model
            type -> reason); the package may be missing.
        target: which variants to take of registered packages (``runtime.register``), None for none.
        strict: whether warnings are errors where a call does not say.
    """

    def __init__(self, index: str | None = None, strict: bool = False, target: str | None = None) -> None:
        self.strict = strict
        self._index_name = index
        self._packaged = PackagedPatches(target)
        self._own: dict[str, dict[str, Registered]] = {}
        self._generated: dict[str, dict[str, Registered]] = {}
        self._silent_instances: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()
        self._silent_types: dict[str, list[str]] = {}

    def register(self, model_type: str, patch_type: str) -> Callable[[_Function], _Function]:
        """Decorator: registers a function and returns it unchanged. Stackable.

        The function takes keywords, and ``model`` if it can patch an instance; ``model`` is not given, or None, for a
        patch of what is built later. It should return ``apply_variants``' report; a function that returns none works,
        but cannot be undone or suspended, and nobody can say what it touched.

        Another function that was registered under the same types is replaced, with a warning; the same one, from a
        second import of its module, is replaced without.

        Raises:
            TypeError: a type is no string or empty, or the function is not callable.
        """
        for kind, given in (("model_type", model_type), ("patch_type", patch_type)):
            if not isinstance(given, str) or not given:
                raise TypeError(f"register: {kind} has to be a name, found {given!r}")

        def decorate(function: _Function) -> _Function:
            self._add(model_type, patch_type, Registered.of(function))
            return function

        return decorate

    @overload
    def apply_monkey_patch(
        self, model_type: str, patch_type: str, *, strict: bool | None = None, **kwargs: Any
    ) -> PatchReport: ...

    @overload
    def apply_monkey_patch(
        self, model_type: str, patch_type: Sequence[str], *, strict: bool | None = None, **kwargs: Any
    ) -> PatchReports: ...

    def apply_monkey_patch(
        self, model_type: str, patch_type: str | Sequence[str], *, strict: bool | None = None, **kwargs: Any
    ) -> PatchReport | PatchReports:
        """Patches the models of this type that are built from now on.

        Args:
            model_type: ``config.model_type``.
            patch_type: one, or several to apply in order.
            strict: whether what would be a warning is an error; None: as the registry says.
            kwargs: shared by all patches: each gets those that its signature takes, and one with ``**kwargs`` gets
                them all. A keyword that nothing registered takes is warned of.
        Returns:
            what was done; for several types the reports in order.
        Raises:
            UnknownPatchError: nothing is registered for the model type, or not of the patch type.
            RefusedFamilyError: the compiler could not derive the family.
            UpstreamChangedError: what was generated is of another release, in which the family means something else.
            PatchError: a patch cannot be applied; those of the same call before it are undone.
        """
        return self._apply(model_type, patch_type, strict, kwargs, instance=None)

    @overload
    def apply_monkey_patch_to_instance(
        self, model: nn.Module, patch_type: str, *, strict: bool | None = None, **kwargs: Any
    ) -> PatchReport: ...

    @overload
    def apply_monkey_patch_to_instance(
        self, model: nn.Module, patch_type: Sequence[str], *, strict: bool | None = None, **kwargs: Any
    ) -> PatchReports: ...

    def apply_monkey_patch_to_instance(
        self, model: nn.Module, patch_type: str | Sequence[str], *, strict: bool | None = None, **kwargs: Any
    ) -> PatchReport | PatchReports:
        """Patches a model that exists, in place; other models are not touched.

        The model may be wrapped (PEFT, DDP, FSDP2, ``torch.compile``): its modules are found by walking, and its type
        is that of the outermost config. A compiled model compiles again when it next runs.

        Args, Returns, Raises: as ``apply_monkey_patch``; further
            TypeError: not a module.
            PatchError: no config with a model type, or a patch function that takes no ``model``.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"a torch.nn.Module is needed to patch an instance, found {type(model).__name__}")
        return self._apply(model_type_of(model), patch_type, strict, kwargs, instance=model)

    @contextmanager
    def generation(self, model: nn.Module, *, strict: bool | None = None) -> Iterator[nn.Module]:
        """Upstream's own forwards for this model, for ``generate``; the patches are back afterwards.

        Other models are not touched. Within, patches can be neither applied to the model nor undone. Contexts nest. A
        model without patches is left alone.

        Raises:
            PatchError: strict, and a patch was applied whose function did not say what it did.
        """
        with call(self._strict(strict), ()):
            self._warn_of_silent(model, "stay in force")
        with swapping.suspended(model):
            yield model

    def undo(self, model: nn.Module, *, strict: bool | None = None) -> int:
        """Takes all patches of this model back, however they came about.

        Returns:
            the number of modules that got upstream's class back.
        Raises:
            PatchError: the model is inside ``generation``; or strict, and a patch function did not say what it did.
        """
        with call(self._strict(strict), ()):
            self._warn_of_silent(model, "cannot be undone")
        return undo_model(model)

    def undo_all(self) -> None:
        """Takes all patches of all models back, and those of models built later. The registrations stay.

        Raises:
            PatchError: a model is inside ``generation``.
        """
        silent = [name for names in (*self._silent_types.values(), *self._silent_instances.values()) for name in names]
        if silent:
            logger.warning("cannot be undone, since they returned no PatchReport: %s", listed(set(silent)))
        undo_everything()

    def __getitem__(self, model_type: str) -> Mapping[str, Patch]:
        return self.patches(model_type)

    def patches(self, model_type: str, model: nn.Module | None = None) -> Mapping[str, Patch]:
        """Patch type -> function. The model decides where a type's code is loaded in several versions.

        Raises KeyError: nothing is registered for the type; PatchError: its variants are not of the model's code.
        """
        found = self._of(model_type, model)
        if not found:
            raise KeyError(model_type)
        return MappingProxyType({patch_type: it.function for patch_type, it in found.items()})

    def __setitem__(self, model_type: str, patches: Mapping[str, Patch]) -> None:
        """Registers several patch types at once; they replace what was registered for the model type."""
        made = {patch_type: Registered.of(function) for patch_type, function in patches.items()}
        self._own[model_type] = made

    def __delitem__(self, model_type: str) -> None:
        """Forgets what was registered; what was generated stays (KeyError if there is nothing else)."""
        del self._own[model_type]

    def __contains__(self, model_type: object) -> bool:
        return (
            bool(self._own.get(cast(str, model_type))) or model_type in self._generated or model_type in self._families
        )

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*(it for it in self._own if self._own[it]), *self._generated, *self._families}))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __str__(self) -> str:
        known = {
            model_type: sorted({**self._generated.get(model_type, {}), **self._own.get(model_type, {})})
            for model_type in self
        }
        return f"{type(self).__name__}({known})"

    __repr__ = __str__

    # -- registering

    def _add(self, model_type: str, patch_type: str, new: Registered) -> None:
        if self._packaged.add(model_type, patch_type, new):
            return
        is_generated = self._index_name is not None and new.name.startswith(f"{self._index_name}.")
        if is_generated:
            check_upstream(new.function.__module__)  # also where the module was imported by its own name
        layer = self._generated if is_generated else self._own
        present = layer.setdefault(model_type, {}).get(patch_type)
        hidden = (self._own if is_generated else self._generated).get(model_type, {}).get(patch_type)
        if present is not None and present.name != new.name:
            self._warn_of_overwriting(model_type, patch_type, present, new)
        layer[model_type][patch_type] = new
        if hidden is not None:
            # Whichever comes second tells of it; the user's is the one that counts.
            generated, own = (new, hidden) if is_generated else (hidden, new)
            self._warn_of_overwriting(model_type, patch_type, generated, own)

    def _warn_of_overwriting(self, model_type: str, patch_type: str, old: Registered, new: Registered) -> None:
        message = f"patch {patch_type!r} of {model_type!r}: {old.name} is overwritten by {new.name}"
        with call(self.strict, ()):
            warn(logger, message)

    # -- looking up

    @property
    def _families(self) -> Mapping[str, str]:
        return {**self._index("FAMILIES"), **self._packaged.families}

    def _index(self, attribute: str) -> Mapping[str, str]:
        if self._index_name is None:
            return {}
        try:
            index = importlib.import_module(self._index_name)
        except ModuleNotFoundError as error:
            # Nothing was generated; that a package of it is missing is another matter.
            if error.name is not None and f"{self._index_name}.".startswith(f"{error.name}."):
                return {}
            raise
        return cast(Mapping[str, str], getattr(index, attribute, {}))

    def _of(self, model_type: str, model: nn.Module | None = None) -> dict[str, Registered]:
        """All patches of a type by patch type, the user's first; imports the generated family, if the release that is
        installed allows it."""
        packaged = self._packaged.of(model_type, model)
        if packaged is not None:
            return {**packaged, **self._own.get(model_type, {})}
        if model_type not in self._generated and model_type in self._families:
            module = self._families[model_type]
            try:
                import_variants(module)
            except ImportError as error:
                raise PatchError(f"the variants of {model_type!r} cannot be imported from {module}: {error}") from error
            if model_type not in self._generated:
                raise PatchError(f"{module} registers nothing for {model_type!r}, though the index says so")
        return {**self._generated.get(model_type, {}), **self._own.get(model_type, {})}

    def _of_other_release(self) -> str:
        return explain_unknown(self._index_name) if self._index_name is not None else ""

    def _find(self, model_type: str, patch_types: Sequence[str], model: nn.Module | None = None) -> list[Registered]:
        if not isinstance(model_type, str) or not model_type:
            raise PatchError(f"a model type is needed, found {model_type!r}")
        own = self._own.get(model_type, {})
        found = own if all(patch_type in own for patch_type in patch_types) else self._of(model_type, model)
        unknown = [patch_type for patch_type in patch_types if patch_type not in found]
        if not unknown:
            return [found[patch_type] for patch_type in patch_types]
        refused = self._index("REFUSED").get(model_type) or self._packaged.refused(model_type)
        if refused is not None:
            raise RefusedFamilyError(model_type, refused)
        if not found:
            raise UnknownPatchError(
                f"no patch is registered for model type {model_type!r}{nearest(model_type, self) or '.'} "
                f"Registered: {listed(self)}. The module that registers a patch has to be imported before it is applied"
                f"{self._of_other_release()}"
            )
        raise UnknownPatchError(
            f"model type {model_type!r} has no patch {unknown[0]!r}{nearest(str(unknown[0]), found) or '.'} "
            f"Registered for it: {listed(found)}"
        )

    # -- applying

    def _apply(
        self,
        model_type: str,
        patch_type: str | Sequence[str],
        strict: bool | None,
        kwargs: dict[str, Any],
        instance: nn.Module | None,
    ) -> PatchReport | PatchReports:
        patch_types = [patch_type] if isinstance(patch_type, str) else list(patch_type)
        if not patch_types:
            raise PatchError("no patch type was given")
        try:
            patches = self._find(model_type, patch_types, kwargs.get(_MODEL) if instance is None else instance)
        except UnknownPatchError as error:
            if instance is None or model_type in self:
                raise
            raise UnknownPatchError(f"{error}{self._registered_parts(instance)}") from None
        if instance is not None:
            for patch in patches:
                if not patch.takes(_MODEL):
                    raise PatchError(f"{patch.name} takes no `model`: it cannot patch an instance")
            kwargs = {**kwargs, _MODEL: instance}
        reports = PatchReports()
        with call(self._strict(strict), kwargs):
            self._check_keywords(patches, kwargs)
            try:
                for name, patch in zip(patch_types, patches, strict=True):
                    reports.append(self._run(model_type, name, patch, kwargs))
            except BaseException:
                PatchReports(report for report in reports if report.undoable).undo()
                raise
        return reports[0] if isinstance(patch_type, str) else reports

    def _run(self, model_type: str, patch_type: str, patch: Registered, kwargs: dict[str, Any]) -> PatchReport:
        taken = {keyword: value for keyword, value in kwargs.items() if patch.takes(keyword)}
        logger.info(
            "patch %r of %r: %s(%s)",
            patch_type,
            model_type,
            patch.name,
            ", ".join(f"{keyword}={value!r}" for keyword, value in taken.items() if keyword != _MODEL),
        )
        report = patch.function(**taken)
        if not isinstance(report, PatchReport):
            self._remember_silent(model_type, patch_type, taken.get(_MODEL))
            report = PatchReport("unknown", dict, {}, None)
        report.model_type, report.patch_type = model_type, patch_type
        return report

    def _check_keywords(self, patches: Sequence[Registered], kwargs: Mapping[str, Any]) -> None:
        known = {_MODEL, *KEYWORDS}
        for layer in (self._own, self._generated, *self._packaged.layers):
            known |= {name for registered in layer.values() for patch in registered.values() for name in patch.names}
        anything = [patch.name for patch in patches if patch.takes_any]
        for keyword in sorted(kwargs.keys() - known):
            meant = nearest(keyword, known)
            if not anything:
                warn(logger, f"no registered patch takes {keyword!r}, it has no effect{meant}")
            elif meant:
                warn(logger, f"{keyword!r} is taken by nothing but **kwargs of {listed(anything)}{meant}")

    def _registered_parts(self, model: nn.Module) -> str:
        parts: dict[str, str] = {}
        for name, module in model.named_modules():
            found = getattr(getattr(module, "config", None), "model_type", None)
            if name and isinstance(found, str) and found in self and found not in parts.values():
                parts[name] = found
        if not parts:
            return ""
        return ". Parts of the model have registered types: " + ", ".join(f"{it} ({parts[it]})" for it in parts)

    def _strict(self, strict: bool | None) -> bool:
        return self.strict if strict is None else strict

    # -- patch functions that return no report

    def _remember_silent(self, model_type: str, patch_type: str, model: nn.Module | None) -> None:
        logger.info("patch %r of %r does not say what it touched", patch_type, model_type)
        name = f"{model_type}/{patch_type}"
        names = (
            self._silent_types.setdefault(model_type, [])
            if model is None
            else self._silent_instances.setdefault(model, [])
        )
        if name not in names:
            names.append(name)

    def _warn_of_silent(self, model: nn.Module, consequence: str) -> None:
        names = set(self._silent_instances.get(model, []))
        names.update(self._silent_types.get(found_model_type(model) or "", []))
        if names:
            warn(logger, f"patches that returned no PatchReport {consequence}: {listed(names)}")


MONKEY_PATCHER = MonkeyPatcher(index="generated.rmpad", target="rmpad")
"""The registry of this process."""
