"""The class of a module: variants that pass for upstream's class, swaps of it, and who asked for them.

A swap sets ``module.__class__``: the object, its parameters, buffers, hooks and attributes stay. Each application of a
patch leaves an entry on the module; upstream's class comes back when the last entry goes, so that patches can be
applied in any order, several times, and undone in any order.
"""

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakSet

from torch import nn
from transformers.modeling_utils import _CAN_RECORD_REGISTRY, PreTrainedModel

from runtime.training.diagnostics import PatchError
from runtime.training.features import ATTRIBUTE

_UPSTREAM = "regraft_upstream"
_ENTRIES = "_regraft_entries"
_SOURCE_CHECKS = ("_can_set_attn_implementation", "_can_set_experts_implementation")

swapped: WeakSet[nn.Module] = WeakSet()
"""Every living module whose class is a variant now."""

_suspended: WeakSet[nn.Module] = WeakSet()
_joined_classes: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}
_wrapped_classes: dict[tuple[type[nn.Module], type[nn.Module]], type[nn.Module]] = {}


class Entry:
    """One application's claim on one module.

    Attributes:
        features: what it switched on there.
    """

    def __init__(self, features: frozenset[str]) -> None:
        self.features = features


def specialised(upstream: type[nn.Module], cls: type[nn.Module]) -> type[nn.Module]:
    """The class that replaces ``upstream``, made to pass for it.

    A subclass of upstream's is used as it is. Any other class serves many families, and a subclass of both is made.
    The name stays upstream's: sharding policies, ``config.architectures``, parameter groups and log lines go by it.

    Raises:
        TypeError: the class replaces another class already.
    """
    if issubclass(cls, upstream) and cls is not upstream:
        if vars(cls).get(_UPSTREAM, upstream) is not upstream:
            raise TypeError(f"{cls.__qualname__} is the variant of {vars(cls)[_UPSTREAM].__qualname__} already")
        if _UPSTREAM not in vars(cls):
            _disguise(cls, upstream, _rebuild_named, (cls.__module__, cls.__qualname__))
        return cls
    return _joined(cls, upstream)


def _joined(cls: type[nn.Module], upstream: type[nn.Module]) -> type[nn.Module]:
    if (cls, upstream) in _joined_classes:
        return _joined_classes[cls, upstream]
    made = cast(type[nn.Module], type(cls.__name__, (cls, upstream), {"__module__": cls.__module__}))
    _disguise(made, upstream, _rebuild_joined, (cls, upstream))
    _joined_classes[cls, upstream] = made
    return made


def _disguise(variant: Any, upstream: Any, rebuild: Any, arguments: tuple[Any, ...]) -> None:
    """Gives the variant upstream's name, its place in transformers' registries, and a way through pickle."""

    def reduce(self: Any, protocol: Any) -> Any:
        # By its name the class would be looked up as upstream's.
        if type(self) is not variant:
            return super(variant, self).__reduce_ex__(protocol)
        return rebuild, arguments, self.__getstate__()

    setattr(variant, _UPSTREAM, upstream)
    variant.__name__, variant.__qualname__ = upstream.__name__, upstream.__qualname__
    variant.__reduce_ex__ = reduce
    if issubclass(variant, PreTrainedModel):
        # Upstream's constructor would have done this, keyed by the text of the class.
        _CAN_RECORD_REGISTRY[str(variant)] = variant._can_record_outputs
        # These read the source file of the class's module for patterns; the answer is upstream's.
        for name in _SOURCE_CHECKS:
            setattr(variant, name, getattr(upstream, name))


def _rebuild_named(module: str, name: str) -> nn.Module:
    return _blank(functools.reduce(getattr, name.split("."), importlib.import_module(module)))


def _rebuild_joined(cls: type[nn.Module], upstream: type[nn.Module]) -> nn.Module:
    return _blank(_joined(cls, upstream))


def _blank(variant: Any) -> nn.Module:
    module = cast(nn.Module, variant.__new__(variant))
    swapped.add(module)
    return module


def plain_class(module: nn.Module) -> type[nn.Module]:
    """The module's class below the one that ``fully_shard`` or ``replicate`` made for it: ``FSDPFoo`` -> ``Foo``."""
    cls = type(module)
    while cls.__module__.startswith("torch.distributed.") and len(cls.__bases__) == 2:
        if not issubclass(cls.__bases__[1], nn.Module):
            break
        cls = cls.__bases__[1]
    return cls


def upstream_class(module: nn.Module) -> type[nn.Module]:
    """Upstream's class of the module, swapped or not, below a wrapper that torch made."""
    cls = plain_class(module)
    return cast(type[nn.Module], vars(cls).get(_UPSTREAM, cls))


def entries(module: nn.Module) -> list[Entry]:
    """The claims on the module, oldest first."""
    return cast(list[Entry], module.__dict__.get(_ENTRIES, []))


def enter(module: nn.Module, variant: type[nn.Module], entry: Entry) -> None:
    """Adds a claim; the first swaps the class."""
    _set_class(module, variant)
    setattr(module, _ENTRIES, [*entries(module), entry])
    setattr(module, ATTRIBUTE, _features(module))
    swapped.add(module)


def leave(module: nn.Module, entry: Entry) -> None:
    """Removes a claim; with the last one upstream's class comes back. A claim that is gone already is no error."""
    if entry not in entries(module):
        return
    refuse_suspended(module)
    left = [other for other in entries(module) if other is not entry]
    if left:
        setattr(module, _ENTRIES, left)
        setattr(module, ATTRIBUTE, _features(module))
        return
    _set_class(module, upstream_class(module))
    module.__dict__.pop(_ENTRIES, None)
    module.__dict__.pop(ATTRIBUTE, None)
    swapped.discard(module)


def refuse_suspended(module: nn.Module) -> None:
    """
    Raises:
        PatchError: the module is inside ``generation``.
    """
    if module in _suspended:
        raise PatchError(f"{type(module).__name__} generates just now; apply and undo patches outside of `generation`")


@contextmanager
def suspended(model: nn.Module) -> Iterator[int]:
    """Upstream's classes for every swapped module below ``model``; the variants afterwards, whatever happens.

    Yields:
        how many modules were swapped back; those that an outer context swapped back already do not count.
    """
    back: list[tuple[nn.Module, type[nn.Module], frozenset[str]]] = []
    try:
        for module in list(model.modules()):
            if entries(module) and module not in _suspended:
                back.append((module, plain_class(module), _features(module)))
                # A forward that was wrapped on the instance since (by accelerate, say) calls the variant's and needs
                # its class; without features that is upstream's arithmetic.
                if "forward" not in vars(module):
                    _set_class(module, upstream_class(module))
                module.__dict__.pop(ATTRIBUTE, None)
                _suspended.add(module)
        yield len(back)
    finally:
        for module, variant, features in back:
            _set_class(module, variant)
            setattr(module, ATTRIBUTE, features)
            _suspended.discard(module)


def _features(module: nn.Module) -> frozenset[str]:
    return frozenset().union(*(entry.features for entry in entries(module)))


def _set_class(module: nn.Module, cls: type[nn.Module]) -> None:
    if plain_class(module) is not cls:
        module.__class__ = _rewrapped(type(module), plain_class(module), cls)


def _rewrapped(outer: type[nn.Module], old: type[nn.Module], new: type[nn.Module]) -> type[nn.Module]:
    """``outer``, which torch made around ``old``, around ``new`` instead."""
    if outer is old:
        return new
    if (outer, new) not in _wrapped_classes:
        wrapper, inner = outer.__bases__
        members = {name: value for name, value in vars(outer).items() if name not in ("__dict__", "__weakref__")}
        made = type(outer.__name__, (wrapper, _rewrapped(inner, old, new)), members)
        _wrapped_classes[outer, new] = cast(type[nn.Module], made)
    return _wrapped_classes[outer, new]
