"""Follows the constructors of upstream's classes: what they build from now on is swapped as ordered.

A model that exists is never touched.
"""

import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from runtime.training.diagnostics import PatchError
from runtime.training.features import RMPAD, active
from runtime.training.variant import Variant


@dataclass(frozen=True, eq=False)
class Order:
    """What one application of a patch wants done to new modules of a class.

    Attributes:
        application: who ordered; orders are taken back by it.
        claim: swaps a module, given the variant and the features to switch on.
        variant, features: what to pass on.
    """

    application: object
    claim: Callable[[nn.Module, Variant, frozenset[str]], None]
    variant: Variant
    features: frozenset[str]


class Hook:
    """Follows the constructor of one class: what it builds, of exactly that class, is swapped as ordered."""

    def __init__(self, upstream: type[nn.Module]) -> None:
        self.upstream = upstream
        self.orders: list[Order] = []
        self._own = cast(Callable[..., None] | None, vars(upstream).get("__init__"))
        original = cast(Callable[..., None], upstream.__init__)

        @functools.wraps(original)
        def __init__(module: Any, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            if type(module) is upstream:
                for order in self.orders:
                    order.claim(module, order.variant, order.features)
            elif type(module) not in hooks and any(RMPAD in order.features for order in self.orders):
                raise PatchError(
                    f"padding cannot be removed: {type(module).__qualname__} derives from {upstream.__name__}, and "
                    "only exact classes are replaced; register a variant for that class, or patch only the instances "
                    "that you mean"
                )

        self._installed = __init__
        setattr(upstream, "__init__", __init__)  # noqa: B010

    def remove_if_idle(self) -> None:
        """Gives the class its own constructor back once nothing is ordered."""
        watch_outer_models()
        if self.orders:
            return
        if vars(self.upstream).get("__init__") is not self._installed:
            # Somebody wrapped it since; it does nothing without orders, and serves the next one.
            return
        if self._own is None:
            delattr(self.upstream, "__init__")
        else:
            setattr(self.upstream, "__init__", self._own)  # noqa: B010
        hooks.pop(self.upstream, None)


hooks: dict[type[nn.Module], Hook] = {}
"""Every class whose constructor is followed."""


def hook_of(upstream: type[nn.Module]) -> Hook:
    """The hook on a class's constructor, installed if need be."""
    if upstream not in hooks:
        hooks[upstream] = Hook(upstream)
    return hooks[upstream]


def watch_outer_models() -> None:
    """While models are built whose padding is removed: refuses those around them that know nothing of it."""
    needed = any(RMPAD in order.features for hook in hooks.values() for order in hook.orders)
    if needed and PreTrainedModel.post_init is _post_init:
        PreTrainedModel.post_init = _watching_post_init
    elif not needed and PreTrainedModel.post_init is _watching_post_init:
        PreTrainedModel.post_init = _post_init


_post_init: Callable[[Any], None] = PreTrainedModel.post_init


@functools.wraps(_post_init)
def _watching_post_init(model: Any) -> None:
    _post_init(model)
    if type(model) not in hooks:
        check_outer(model, frozenset())


def living(classes: Iterable[type[nn.Module]]) -> dict[str, int]:
    """How many modules of exactly these classes exist, by class name."""
    chosen = list(classes)

    def count() -> Counter[type]:
        return Counter(type(found) for found in gc.get_referrers(*chosen) if type(found) in set(chosen))

    if chosen and count():
        gc.collect()
        return {cls.__name__: number for cls, number in count().items()}
    return {}


def check_outer(outer: nn.Module, packing: Set[nn.Module]) -> None:
    """Every model around one that packs has to know that rows are packed.

    Args:
        outer: any module.
        packing: modules that are about to pack; those that do already count as well.
    Raises:
        PatchError: ``outer`` is a model that knows nothing of it.
    """
    if not isinstance(outer, PreTrainedModel) or active(outer, RMPAD):
        return
    if any(module in packing or active(module, RMPAD) for module in outer.modules()):
        raise PatchError(
            f"padding cannot be removed: {type(outer).__name__} has no variant and would misread packed rows"
        )


def check_same(upstream: type[nn.Module], present: type[nn.Module], new: Variant) -> None:
    """
    Raises:
        PatchError: the class that is there already is another table's.
    """
    if present is not new.cls:
        raise PatchError(
            f"{upstream.__name__} is replaced by a class of {present.__module__} already and cannot be replaced by "
            f"{new!r}; undo that first"
        )
