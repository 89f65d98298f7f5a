"""Puts variants in the place of upstream's classes, says what was touched, and takes it back.

``apply_variants`` works on a model (its modules are swapped) or, without one, on what is built from then on: the
constructor of each upstream class is followed by the swap. A model that exists is never touched by the latter, so that
a teacher stays as it is. Only exact classes match.
"""

import functools
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, cast
from weakref import ref

from torch import nn
from transformers.modeling_utils import PreTrainedModel

from runtime.training import kernels, swapping
from runtime.training.diagnostics import PatchError, asked, warn
from runtime.training.features import KERNELS, KEYWORDS, RMPAD, active

logger = logging.getLogger(__name__)


class Variant:
    """What replaces an upstream class, and the features for which it is needed.

    Args:
        cls: a subclass of upstream's class, or a class of the runtime that has the same attributes. Its constructor
            never runs.
        features: the class is swapped in when one of them is asked for.
    Raises:
        TypeError: no module class, or no features.
    """

    def __init__(self, cls: type[nn.Module], *features: str) -> None:
        if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
            raise TypeError(f"Variant: {cls!r} is not a torch.nn.Module class")
        if not features:
            raise TypeError(f"Variant: {cls.__qualname__} has no features, it would never be swapped in")
        self.cls = cls
        self.features = frozenset(features)

    def __repr__(self) -> str:
        return f"Variant({self.cls.__module__}.{self.cls.__qualname__}, {', '.join(sorted(self.features))})"


def variants(table: Mapping[type[nn.Module], Variant]) -> dict[type[nn.Module], Variant]:
    """The table, with each variant made to pass for the upstream class that it replaces.

    Args:
        table: upstream's class -> what replaces it. A variant that is no subclass of upstream's class may stand in any
            number of tables; one that is, belongs to that class and takes its name.
    Raises:
        TypeError: a key is no module class, or a variant replaces another class already.
    """
    made = {}
    for upstream, variant in table.items():
        if not (isinstance(upstream, type) and issubclass(upstream, nn.Module)):
            raise TypeError(f"variants: {upstream!r} is not a torch.nn.Module class")
        made[upstream] = Variant(swapping.specialised(upstream, variant.cls), *variant.features)
    return made


@dataclass(frozen=True)
class Touched:
    """What happened to the modules of one upstream class.

    Attributes:
        modules: how many were swapped.
        features: what was switched on for them, sorted.
    """

    modules: int
    features: tuple[str, ...]


class PatchReport:
    """What one application of a patch did. As a context manager it takes the patch back at the end.

    Attributes:
        scope: ``instance``: a model; ``class``: whatever is built until ``undo``; ``unknown``: the patch function did
            not say what it did.
        not_applied: feature that was asked for -> why nothing was done about it.
        model_type, patch_type: under which it was registered; None when the patch function was called directly.
    """

    def __init__(
        self,
        scope: Literal["instance", "class", "unknown"],
        touched: Callable[[], dict[str, Touched]],
        not_applied: Mapping[str, str],
        take_back: Callable[[], None] | None,
    ) -> None:
        self.scope = scope
        self.not_applied = dict(not_applied)
        self.model_type: str | None = None
        self.patch_type: str | None = None
        self._touched = touched
        self._take_back = take_back

    @property
    def touched(self) -> dict[str, Touched]:
        """Upstream class -> modules and features. For scope ``class`` the modules built since, those alive."""
        return self._touched()

    @property
    def undoable(self) -> bool:
        return self._take_back is not None

    def undo(self) -> None:
        """Takes this application back; others on the same modules stay. A second call does nothing.

        Raises:
            PatchError: the patch function did not say what it did; or a module is inside ``generation``.
        """
        if self._take_back is None:
            raise PatchError(f"{self._name} cannot be undone: the patch function returned no PatchReport")
        self._take_back()

    def __enter__(self) -> "PatchReport":
        if self._take_back is None:
            raise PatchError(f"{self._name} cannot be a context: the patch function returned no PatchReport")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    @property
    def _name(self) -> str:
        return "a patch" if self.model_type is None else f"patch {self.patch_type!r} of {self.model_type!r}"

    def __str__(self) -> str:
        done = [f"{name} x{it.modules} ({', '.join(it.features)})" for name, it in self.touched.items()]
        alike: dict[str, list[str]] = {}
        for feature, reason in sorted(self.not_applied.items()):
            alike.setdefault(reason, []).append(feature)
        left = [f"{', '.join(features)} not applied: {reason}" for reason, features in alike.items()]
        return f"{self._name} [{self.scope}]: " + "; ".join([*(done or ["nothing touched"]), *left])

    __repr__ = __str__


class PatchReports(list[PatchReport]):
    """The reports of several patches, in the order of application; undone together, the last first."""

    def undo(self) -> None:
        """Takes all of them back.

        Raises:
            PatchError: one cannot be undone; those after it were.
        """
        for report in reversed(self):
            report.undo()

    def __enter__(self) -> "PatchReports":
        for report in self:
            report.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def apply_variants(
    table: Mapping[type[nn.Module], Variant],
    not_applied: Mapping[str, str],
    model: nn.Module | None = None,
    **features: bool,
) -> PatchReport:
    """Swaps the variants in that the features need.

    Applying the same again changes nothing, and features of several applications add up.

    Args:
        table: upstream class -> variant, from ``variants``.
        not_applied: feature -> why this family has nothing for it.
        model: the model to patch in place; None patches what is built from now on.
        features: feature -> whether it is asked for.
    Raises:
        PatchError: no module of the model is in the table; the features contradict each other; padding would be removed
            below a model that expects it; another table's variant or a forward of the instance is in the way. Or a
            warning under ``strict``. Nothing was changed.
    """
    wanted = frozenset(feature for feature, on in features.items() if on)
    if {"cross_entropy", "fused_linear_cross_entropy"} <= wanted:
        raise PatchError(
            "cross_entropy and fused_linear_cross_entropy exclude each other: pass fused_linear_cross_entropy=False"
        )
    usable, missing = _usable(wanted, not_applied)
    application = _Application(usable)
    if model is None:
        application.follow_constructors(table, missing)
    else:
        application.swap(model, table, missing)
    return application.report(missing, "class" if model is None else "instance")


def undo_model(model: nn.Module) -> int:
    """Takes every patch of the model's modules back, however often and in whatever order they were applied.

    Returns:
        the number of modules that got upstream's class back.
    """
    found = [module for module in model.modules() if swapping.entries(module)]
    for module in found:
        swapping.refuse_suspended(module)
    for module in found:
        for entry in list(swapping.entries(module)):
            swapping.leave(module, entry)
    return len(found)


def undo_everything() -> None:
    """Takes every patch of every living model back, and those of what is built from now on."""
    for hook in list(_hooks.values()):
        hook.orders.clear()
        hook.remove_if_idle()
    for module in list(swapping.swapped):
        undo_model(module)


def _usable(wanted: frozenset[str], not_applied: Mapping[str, str]) -> tuple[frozenset[str], dict[str, str]]:
    """What can be done at all on this machine for this family, and reasons for the rest."""
    missing = {feature: reason for feature, reason in not_applied.items() if feature in wanted}
    for feature in sorted(missing):
        # The functions switch most features on by default: only who asked for one has to hear that there is none.
        _tell(feature, missing[feature], aloud=_is_asked(feature, when_called_directly=False))
    needing_kernels = sorted((wanted & KERNELS) - missing.keys())
    reason = kernels.available() if needing_kernels else None
    if reason is not None:
        warn(logger, f"kernels are not applied ({', '.join(needing_kernels)}): {reason}")
        missing.update(dict.fromkeys(needing_kernels, reason))
    return wanted - missing.keys(), missing


def _is_asked(feature: str, when_called_directly: bool) -> bool:
    keywords = asked()
    if keywords is None:
        return when_called_directly
    return feature == RMPAD or feature in {KEYWORDS.get(keyword, keyword) for keyword in keywords}


def _tell(feature: str, reason: str, aloud: bool) -> None:
    if aloud:
        warn(logger, f"{feature} is not applied: {reason}")
    else:
        logger.info("%s is not applied: %s", feature, reason)


@dataclass(eq=False)
class _Application:
    """One call of ``apply_variants``: the entries that it left, and the orders for constructors."""

    features: frozenset[str]
    claims: list[tuple[ref[nn.Module], type[nn.Module], swapping.Entry]] = field(default_factory=list)
    ordered: dict[type[nn.Module], frozenset[str]] = field(default_factory=dict)

    def swap(self, model: nn.Module, table: Mapping[type[nn.Module], Variant], missing: dict[str, str]) -> None:
        plan: dict[nn.Module, tuple[Variant, frozenset[str]]] = {}
        derived: Counter[tuple[type[nn.Module], type[nn.Module]]] = Counter()
        known = False
        for name, module in model.named_modules():
            upstream = swapping.upstream_class(module)
            variant = table.get(upstream)
            if variant is None:
                derived.update((upstream, base) for base in upstream.__mro__ if base in table)
                continue
            known = True
            features = variant.features & self.features
            if features:
                _check_free(name, module, variant)
                plan[module] = variant, features
        if not known and not derived:
            raise PatchError(
                f"nothing matched: no module of this {type(model).__name__} is one of "
                f"{', '.join(upstream.__name__ for upstream in table)}"
            )
        self._check_subclasses(derived, table)
        if not known:
            raise PatchError(f"nothing matched: {type(model).__name__} has no module of exactly a class of the table")
        self._check_outer_models(model, plan)
        self._check_untouched(frozenset().union(*(features for _, features in plan.values())), missing)
        try:
            for module, (variant, features) in plan.items():
                self.claim(module, variant, features)
        except BaseException:
            self.take_back()
            raise

    def follow_constructors(self, table: Mapping[type[nn.Module], Variant], missing: dict[str, str]) -> None:
        chosen = {upstream: it for upstream, it in table.items() if it.features & self.features}
        for upstream, variant in chosen.items():
            if upstream in _hooks:
                for order in _hooks[upstream].orders:
                    _check_same(upstream, order.variant.cls, variant)
        self._check_untouched(frozenset().union(*(it.features & self.features for it in chosen.values())), missing)
        present = _living(chosen)
        if present:
            counts = ", ".join(f"{name} x{count}" for name, count in present.items())
            warn(
                logger,
                f"built already and left as they are: {counts}; this patches what is built from now on, "
                "apply_monkey_patch_to_instance patches a model that exists",
            )
        for upstream, variant in chosen.items():
            self.ordered[upstream] = variant.features & self.features
            _hook(upstream).orders.append(_Order(self, variant, self.ordered[upstream]))
        _watch_outer_models()

    def claim(self, module: nn.Module, variant: Variant, features: frozenset[str]) -> None:
        entry = swapping.Entry(features)
        upstream = swapping.upstream_class(module)
        swapping.enter(module, variant.cls, entry)
        self.claims.append((ref(module), upstream, entry))

    def report(self, missing: Mapping[str, str], scope: Literal["instance", "class"]) -> PatchReport:
        report = PatchReport(scope, self._touched, missing, self.take_back)
        logger.info("%s", report)
        return report

    def take_back(self) -> None:
        for reference, _, _ in self.claims:
            if (module := reference()) is not None:
                swapping.refuse_suspended(module)
        for upstream in self.ordered:
            if (hook := _hooks.get(upstream)) is not None:
                hook.orders[:] = [order for order in hook.orders if order.application is not self]
                hook.remove_if_idle()
        for reference, _, entry in reversed(self.claims):
            if (module := reference()) is not None:
                swapping.leave(module, entry)
        self.claims.clear()
        self.ordered.clear()

    def _touched(self) -> dict[str, Touched]:
        features = {upstream.__name__: set(asked_for) for upstream, asked_for in self.ordered.items()}
        counts: Counter[str] = Counter()
        for reference, upstream, entry in self.claims:
            module = reference()
            if module is not None and entry in swapping.entries(module):
                counts[upstream.__name__] += 1
                features.setdefault(upstream.__name__, set()).update(entry.features)
        return {name: Touched(counts[name], tuple(sorted(on))) for name, on in features.items()}

    def _check_untouched(self, touched: Iterable[str], missing: dict[str, str]) -> None:
        for feature in sorted(self.features - set(touched)):
            missing[feature] = "no class of this model takes it"
            _tell(feature, missing[feature], aloud=_is_asked(feature, when_called_directly=True))

    def _check_subclasses(
        self,
        derived: Mapping[tuple[type[nn.Module], type[nn.Module]], int],
        table: Mapping[type[nn.Module], Variant],
    ) -> None:
        """A subclass may do anything in its forward. It stays as it is, which packed rows do not allow."""
        for (cls, base), count in derived.items():
            concerned = table[base].features & self.features
            message = (
                f"{count} module(s) of {cls.__module__}.{cls.__qualname__} derive from {base.__name__} and are left as "
                "they are, since only exact classes are replaced; register a variant for that class"
            )
            if RMPAD in concerned:
                raise PatchError(f"padding cannot be removed: {message}")
            if concerned:
                warn(logger, message)

    def _check_outer_models(self, model: nn.Module, plan: Mapping[nn.Module, tuple[Variant, frozenset[str]]]) -> None:
        packing = {module for module, (_, features) in plan.items() if RMPAD in features}
        for outer in model.modules():
            if outer not in packing:
                _check_outer(outer, packing)


def _check_outer(outer: nn.Module, packing: Set[nn.Module]) -> None:
    """Every model around one that packs has to know that rows are packed."""
    if not isinstance(outer, PreTrainedModel) or active(outer, RMPAD):
        return
    if any(module in packing or active(module, RMPAD) for module in outer.modules()):
        raise PatchError(
            f"padding cannot be removed: {type(outer).__name__} has no variant and would misread packed rows"
        )


def _check_free(name: str, module: nn.Module, variant: Variant) -> None:
    swapping.refuse_suspended(module)
    current = swapping.plain_class(module)
    if swapping.entries(module):
        _check_same(swapping.upstream_class(module), current, variant)
    elif "forward" in vars(module):
        raise PatchError(
            f"{name or 'the model'} ({current.__name__}) has a forward of its own, set on the instance (by a hook or "
            "another patch), which would hide the variant's; apply the patch before whatever set it"
        )


def _check_same(upstream: type[nn.Module], present: type[nn.Module], new: Variant) -> None:
    if present is not new.cls:
        raise PatchError(
            f"{upstream.__name__} is replaced by a class of {present.__module__} already and cannot be replaced by "
            f"{new!r}; undo that first"
        )


@dataclass(frozen=True, eq=False)
class _Order:
    application: _Application
    variant: Variant
    features: frozenset[str]


class _Hook:
    """Follows the constructor of one class: what it builds, of exactly that class, is swapped as ordered."""

    def __init__(self, upstream: type[nn.Module]) -> None:
        self.upstream = upstream
        self.orders: list[_Order] = []
        self._own = cast(Callable[..., None] | None, vars(upstream).get("__init__"))
        original = cast(Callable[..., None], upstream.__init__)

        @functools.wraps(original)
        def __init__(module: Any, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            if type(module) is upstream:
                for order in self.orders:
                    order.application.claim(module, order.variant, order.features)
            elif type(module) not in _hooks and any(RMPAD in order.features for order in self.orders):
                raise PatchError(
                    f"padding cannot be removed: {type(module).__qualname__} derives from {upstream.__name__}, and "
                    "only exact classes are replaced; register a variant for that class, or patch only the instances "
                    "that you mean"
                )

        self._installed = __init__
        setattr(upstream, "__init__", __init__)  # noqa: B010

    def remove_if_idle(self) -> None:
        _watch_outer_models()
        if self.orders:
            return
        if vars(self.upstream).get("__init__") is not self._installed:
            # Somebody wrapped it since; it does nothing without orders, and serves the next one.
            return
        if self._own is None:
            delattr(self.upstream, "__init__")
        else:
            setattr(self.upstream, "__init__", self._own)  # noqa: B010
        _hooks.pop(self.upstream, None)


_hooks: dict[type[nn.Module], _Hook] = {}


def _hook(upstream: type[nn.Module]) -> _Hook:
    if upstream not in _hooks:
        _hooks[upstream] = _Hook(upstream)
    return _hooks[upstream]


def _watch_outer_models() -> None:
    """While models are built whose padding is removed: refuses those around them that know nothing of it."""
    needed = any(RMPAD in order.features for hook in _hooks.values() for order in hook.orders)
    if needed and PreTrainedModel.post_init is _post_init:
        PreTrainedModel.post_init = _watching_post_init
    elif not needed and PreTrainedModel.post_init is _watching_post_init:
        PreTrainedModel.post_init = _post_init


_post_init: Callable[[Any], None] = PreTrainedModel.post_init


@functools.wraps(_post_init)
def _watching_post_init(model: Any) -> None:
    _post_init(model)
    if type(model) not in _hooks:
        _check_outer(model, frozenset())


def _living(classes: Iterable[type[nn.Module]]) -> dict[str, int]:
    """How many modules of exactly these classes exist, by class name."""
    chosen = list(classes)

    def count() -> Counter[type]:
        return Counter(type(found) for found in gc.get_referrers(*chosen) if type(found) in set(chosen))

    if chosen and count():
        gc.collect()
        return {cls.__name__: number for cls, number in count().items()}
    return {}
