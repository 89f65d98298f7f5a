"""Replaces upstream modules by their variants, in place and reversibly.

A swap sets ``module.__class__``: the object, its parameters, buffers, hooks and attributes stay, and the variant's
``__init__`` never runs. ``__qeff_init__`` does, right after the swap, parents before children.
"""

import importlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, ClassVar, cast

from torch import nn

from runtime import own_variants
from runtime.guard import explain_unknown, import_variants

logger = logging.getLogger(__name__)

_TARGET = "qeff"
_INDEX = f"generated.{_TARGET}"
_VARIANTS = "KV_CACHE_MAPPING"
_SWAPS = "_qeff_swaps"
_TABLES = ("_parameters", "_buffers", "_modules")


class UnsupportedFamilyError(ValueError):
    """There are no variants for this model.

    Attributes:
        family: the model type.
        reason: why not.
    """

    def __init__(self, family: str, reason: str) -> None:
        super().__init__(f"model type {family!r} is not supported: {reason}")
        self.family = family
        self.reason = reason


@dataclass(frozen=True)
class _Change:
    """What a hook did to one dictionary of a module: names before, names added, entries replaced or removed."""

    before: tuple[str, ...]
    added: tuple[str, ...]
    replaced: Mapping[str, Any]

    def take_back(self, entries: dict[str, Any]) -> None:
        """Restores the dictionary, its order included; entries that the hook did not touch keep their present value."""
        for name in self.added:
            entries.pop(name, None)
        entries.update(self.replaced)
        ordered = {name: entries.pop(name) for name in self.before if name in entries}
        ordered.update(entries)
        entries.clear()
        entries.update(ordered)


@dataclass(frozen=True)
class _Swap:
    """One swap of one module, enough to take it back."""

    transform: str
    original: type[nn.Module]
    attributes: _Change
    tables: Mapping[str, _Change]
    non_persistent: frozenset[str]


class ModuleMappingTransform:
    """Swaps every module whose class is, exactly, a key of ``_module_mapping``. Never instantiated."""

    _module_mapping: ClassVar[MutableMapping[type[nn.Module], type[nn.Module]]] = {}

    def __init__(self) -> None:
        raise TypeError(f"{type(self).__name__} is not to be instantiated; call {type(self).__name__}.apply(model)")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "_module_mapping" not in cls.__dict__:
            cls._module_mapping = {}

    @classmethod
    def register(cls, upstream: type[nn.Module], variant: type[nn.Module]) -> None:
        """Adds or replaces the variant of a class; for this transform only.

        Raises:
            TypeError: one of them is no module class.
        """
        for given in (upstream, variant):
            if not (isinstance(given, type) and issubclass(given, nn.Module)):
                raise TypeError(f"{cls.__name__}.register: {given!r} is not a torch.nn.Module class")
        cls._module_mapping[upstream] = variant

    @classmethod
    def apply(cls, model: nn.Module) -> tuple[nn.Module, bool]:
        """Swaps what matches, in place.

        A module that was swapped already does not match again. If a hook fails, the swaps of this call are undone.

        Returns:
            the model, and whether anything was swapped.
        Raises:
            UnsupportedFamilyError: there are no variants for the model (transforms over generated variants).
            UpstreamChangedError: they are of another release, in which the family means something else (likewise).
        """
        find = cls._finder(model)
        done: list[nn.Module] = []
        try:
            for module in model.modules():
                variant = find(type(module))
                if variant is not None and variant is not type(module):
                    done.append(module)
                    _swap(module, variant, cls.__name__)
        except BaseException:
            for module in reversed(done):
                _take_back(module, cls.__name__)
            raise
        if done:
            counts = ", ".join(f"{name} x{count}" for name, count in cls.matched(model).items())
            logger.info("%s: %s", cls.__name__, counts)
        return model, bool(done)

    @classmethod
    def undo(cls, model: nn.Module) -> tuple[nn.Module, bool]:
        """Takes this transform's swaps back: the classes, and the state that the hooks made.

        Raises:
            RuntimeError: another transform swapped one of the modules later; undo that one first.
        """
        mine = [module for module in model.modules() if any(swap.transform == cls.__name__ for swap in _swaps(module))]
        for module in mine:
            if _swaps(module)[-1].transform != cls.__name__:
                later = _swaps(module)[-1].transform
                raise RuntimeError(
                    f"{cls.__name__}.undo: {type(module).__name__} was swapped by {later} since; undo that first"
                )
        for module in reversed(mine):
            _take_back(module, cls.__name__)
        return model, bool(mine)

    @classmethod
    def matched(cls, model: nn.Module) -> dict[str, int]:
        """How many modules of each variant class this transform swapped in, by class name, in the model's order."""
        return dict(
            Counter(
                type(module).__name__
                for module in model.modules()
                if any(swap.transform == cls.__name__ for swap in _swaps(module))
            )
        )

    @classmethod
    def _finder(cls, model: nn.Module) -> Callable[[type[nn.Module]], type[nn.Module] | None]:
        return cls._module_mapping.get


class GeneratedMapping(MutableMapping[type[nn.Module], type[nn.Module]]):
    """Upstream class -> variant over all generated modules, each with the classes of its own upstream module.

    A look-up imports the generated module of the class's own family alone, also where that is in a registered package;
    to iterate, or to ask for the length, imports all shipped ones, and tells of no others.

    Args:
        attribute: the mapping's name in the generated modules.
    """

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute
        self._registered: dict[type[nn.Module], type[nn.Module]] = {}

    def of(self, generated_module: str) -> Mapping[type[nn.Module], type[nn.Module]]:
        """The mapping of one generated module, which is imported if the release that is installed allows it (see
        `runtime.guard`)."""
        found = getattr(import_variants(generated_module), self._attribute)
        return cast(Mapping[type[nn.Module], type[nn.Module]], found)

    def __getitem__(self, upstream: type[nn.Module]) -> type[nn.Module]:
        if upstream in self._registered:
            return self._registered[upstream]
        own = own_variants.variants_of(_TARGET, upstream)
        if own is not None:
            return cast(type[nn.Module], getattr(own, self._attribute)[upstream])
        return self.of(_index().modules[upstream.__module__])[upstream]

    def __setitem__(self, upstream: type[nn.Module], variant: type[nn.Module]) -> None:
        self._registered[upstream] = variant

    def __delitem__(self, upstream: type[nn.Module]) -> None:
        """Removes a registered class; a generated one cannot be removed (KeyError)."""
        del self._registered[upstream]

    def __iter__(self) -> Iterator[type[nn.Module]]:
        return iter(self._complete())

    def __len__(self) -> int:
        return len(self._complete())

    def _complete(self) -> dict[type[nn.Module], type[nn.Module]]:
        complete: dict[type[nn.Module], type[nn.Module]] = {}
        for upstream_module, generated_module in _index().modules.items():
            mapping = self.of(generated_module)
            complete.update({cls: mapping[cls] for cls in mapping if cls.__module__ == upstream_module})
        complete.update(self._registered)
        return complete


class _GeneratedTransform(ModuleMappingTransform):
    """A transform over generated variants: it knows which families there are."""

    _module_mapping: ClassVar[MutableMapping[type[nn.Module], type[nn.Module]]] = GeneratedMapping("")

    @classmethod
    def _finder(cls, model: nn.Module) -> Callable[[type[nn.Module]], type[nn.Module] | None]:
        mapping = cls._module_mapping
        assert isinstance(mapping, GeneratedMapping)
        index = _index()
        family = getattr(getattr(model, "config", None), "model_type", None)
        if isinstance(family, str) and family in index.refused:
            raise UnsupportedFamilyError(family, index.refused[family])
        if isinstance(family, str) and (own := _of_package(family, model)) is not None:
            variants = getattr(own, mapping._attribute)
            return lambda upstream: mapping._registered.get(upstream) or variants.get(upstream) or mapping.get(upstream)
        module = index.families.get(family) if isinstance(family, str) else None
        module = module or _module_of_class(type(model))
        if family is None or module is not None:
            # The family's own module comes first: it also maps the classes that it took from another family.
            first = {} if module is None else mapping.of(module)
            return lambda upstream: mapping._registered.get(upstream) or first.get(upstream) or mapping.get(upstream)
        if not any(type(module) in mapping._registered or _swaps(module) for module in model.modules()):
            raise UnsupportedFamilyError(
                str(family),
                f"it is not among the {len(index.families)} families that were generated{explain_unknown(_INDEX)}",
            )
        return mapping._registered.get


class CustomOpsTransform(_GeneratedTransform):
    """Norms -> norms that export as the accelerator's operator."""

    _module_mapping: ClassVar[MutableMapping[type[nn.Module], type[nn.Module]]] = GeneratedMapping("CUSTOM_OPS_MAPPING")


class KVCacheTransform(_GeneratedTransform):
    """Attention, layers, backbone, head and rotary -> variants with fixed-size KV buffers addressed by position."""

    _module_mapping: ClassVar[MutableMapping[type[nn.Module], type[nn.Module]]] = GeneratedMapping(_VARIANTS)


@dataclass(frozen=True)
class _Index:
    """What was generated: upstream module -> generated module, model type -> generated module, model type -> reason."""

    modules: Mapping[str, str]
    families: Mapping[str, str]
    refused: Mapping[str, str]


@cache
def _index() -> _Index:
    generated = importlib.import_module(_INDEX)
    try:
        return _Index(generated.MODULES, generated.FAMILIES, generated.REFUSED)
    except AttributeError as error:
        raise RuntimeError(f"{_INDEX} has no index of variants; generate them with `regraft generate`") from error


def _of_package(family: str, model: nn.Module) -> ModuleType | None:
    """The variants of a model whose type a registered package has."""
    refused = own_variants.refused(_TARGET)
    if family in refused:
        raise UnsupportedFamilyError(family, refused[family])
    upstream = _swaps(model)[0].original if _swaps(model) else type(model)
    try:
        return own_variants.variants_of_type(_TARGET, family, [upstream])
    except own_variants.OtherTextError as error:
        raise UnsupportedFamilyError(family, str(error)) from error


def _module_of_class(model: type[nn.Module]) -> str | None:
    """The generated module with a variant of a whole model's class.

    The text part of a composite model has a model type of its own, which upstream's mapping need not list."""
    module = _index().modules.get(model.__module__)
    if module is None:
        return None
    variants: Mapping[type[nn.Module], type[nn.Module]] = getattr(import_variants(module), _VARIANTS)
    return module if model in variants else None


def _swaps(module: nn.Module) -> list[_Swap]:
    return cast(list[_Swap], module.__dict__.get(_SWAPS, []))


def _state(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]], set[str]]:
    """Shallow copies of a module's attributes, of its tables, and of the names of its non-persistent buffers."""
    hidden = {_SWAPS, "_non_persistent_buffers_set", *_TABLES}
    attributes = {name: value for name, value in module.__dict__.items() if name not in hidden}
    return (
        attributes,
        {table: dict(module.__dict__[table]) for table in _TABLES},
        set(module._non_persistent_buffers_set),
    )


def _change(before: Mapping[str, Any], after: Mapping[str, Any]) -> _Change:
    added = tuple(name for name in after if name not in before)
    replaced = {name: old for name, old in before.items() if name not in after or after[name] is not old}
    return _Change(tuple(before), added, replaced)


def _swap(module: nn.Module, variant: type[nn.Module], transform: str) -> None:
    """Swaps one module; what its hook changed is recorded even if the hook fails."""
    original = type(module)
    attributes, tables, non_persistent = _state(module)
    module.__class__ = variant
    try:
        hook = getattr(module, "__qeff_init__", None)
        if hook is not None:
            hook()
    finally:
        attributes_now, tables_now, _ = _state(module)
        swap = _Swap(
            transform,
            original,
            _change(attributes, attributes_now),
            {table: _change(tables[table], tables_now[table]) for table in _TABLES},
            frozenset(non_persistent),
        )
        module.__dict__.setdefault(_SWAPS, []).append(swap)


def _take_back(module: nn.Module, transform: str) -> None:
    """Takes the last swap back; later changes of state that the hook did not touch stay."""
    swaps = _swaps(module)
    if not swaps or swaps[-1].transform != transform:
        return
    swap = swaps.pop()
    module.__class__ = swap.original
    swap.attributes.take_back(module.__dict__)
    for table, change in swap.tables.items():
        change.take_back(module.__dict__[table])
    added_buffers = set(swap.tables["_buffers"].added)
    module._non_persistent_buffers_set -= added_buffers - swap.non_persistent
    module._non_persistent_buffers_set |= swap.non_persistent & set(module._buffers)
    if not swaps:
        del module.__dict__[_SWAPS]
