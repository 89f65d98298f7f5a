"""Puts variants in the place of upstream's classes, says what was touched, and takes it back.

``apply_variants`` works on a model (its modules are swapped) or, without one, on what is built from then on: the
constructor of each upstream class is followed by the swap. A model that exists is never touched by the latter, so that
a teacher stays as it is. Only exact classes match.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from weakref import ref

from torch import nn

from runtime.training import kernels, swapping
from runtime.training.constructors import Order, check_outer, check_same, hook_of, hooks, living, watch_outer_models
from runtime.training.diagnostics import PatchError, asked, warn
from runtime.training.features import KERNELS, KEYWORDS, RMPAD
from runtime.training.reports import PatchReport, PatchReports, Touched
from runtime.training.variant import Variant, variants

__all__ = [
    "PatchReport",
    "PatchReports",
    "Touched",
    "Variant",
    "apply_variants",
    "undo_everything",
    "undo_model",
    "variants",
]

logger = logging.getLogger(__name__)


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
    for hook in list(hooks.values()):
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
            if upstream in hooks:
                for order in hooks[upstream].orders:
                    check_same(upstream, order.variant.cls, variant)
        self._check_untouched(frozenset().union(*(it.features & self.features for it in chosen.values())), missing)
        present = living(chosen)
        if present:
            counts = ", ".join(f"{name} x{count}" for name, count in present.items())
            warn(
                logger,
                f"built already and left as they are: {counts}; this patches what is built from now on, "
                "apply_monkey_patch_to_instance patches a model that exists",
            )
        for upstream, variant in chosen.items():
            self.ordered[upstream] = variant.features & self.features
            hook_of(upstream).orders.append(Order(self, self.claim, variant, self.ordered[upstream]))
        watch_outer_models()

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
            if (hook := hooks.get(upstream)) is not None:
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
                check_outer(outer, packing)


def _check_free(name: str, module: nn.Module, variant: Variant) -> None:
    swapping.refuse_suspended(module)
    current = swapping.plain_class(module)
    if swapping.entries(module):
        check_same(swapping.upstream_class(module), current, variant)
    elif "forward" in vars(module):
        raise PatchError(
            f"{name or 'the model'} ({current.__name__}) has a forward of its own, set on the instance (by a hook or "
            "another patch), which would hide the variant's; apply the patch before whatever set it"
        )
