"""Compilers that lack one thing each: a step of a target, a kind of fact, a check; or that claim a wrong fact."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from codegen.ir import AttentionStyle, FamilyIR, NormScale, Role, RotaryStyle
from codegen.recognize.packable import ID as PACKABLE
from codegen.targets import TARGETS
from codegen.targets.base import Check, Step, Target
from codegen.targets.qeff import QEFF
from codegen.targets.rmpad import RMPAD, RMS_NORM
from runtime.training.features import KERNELS

EXPERTS = "experts"
CHECKS: dict[str, tuple[str, ...]] = {
    PACKABLE: (
        "an attention that only its mask keeps from seeing a token",
        "default positions counted from a row's start",
        "the padding mask handed to a mask factory or to a carrier, or tested for None",
    )
}
"""What the checks of targets expect, by their id: each is left out alone."""


def _same_target(target: Target) -> Target:
    return target


def _same_facts(family: FamilyIR) -> FamilyIR:
    return family


@dataclass(frozen=True, eq=False)
class Mutation:
    """A compiler of one target that lacks one thing.

    Attributes:
        on: whether a family has it; by default, whether the facts are others.
        rule: the step that is gone.
        kernel: the feature that goes with it.
        same_numbers: whether the numbers of float32 stay what they are.
        lifts: the check whose refusals are taken back, where there is no text without the mutation.
    """

    name: str
    of: Target
    target: Callable[[Target], Target] = _same_target
    facts: Callable[[FamilyIR], FamilyIR] = _same_facts
    on: Callable[[FamilyIR], bool] | None = None
    rule: str = ""
    kernel: str = ""
    same_numbers: bool = False
    lifts: str = ""

    def touches(self, family: FamilyIR) -> bool:
        """Whether a family has, as far as its facts go, what is taken away."""
        return self.facts(family) != family if self.on is None else self.on(family)


NOTHING: dict[str, Mutation] = {name: Mutation("nothing", target) for name, target in TARGETS.items()}


def _without_step(target: Target, step: Step) -> Mutation:
    rule = step.rule.id
    return Mutation(
        rule,
        target,
        target=lambda t: replace(t, steps=tuple(s for s in t.steps if s.rule.id != rule)),
        rule=rule,
        kernel=step.feature if step.feature in KERNELS else "",
        same_numbers=step.feature in KERNELS,
    )


def _without_norms(target: Target, scale: NormScale) -> Mutation:
    return Mutation(
        f"{target.name}/norm: {scale.name.lower()}",
        target,
        facts=lambda f: replace(f, norms=tuple(n for n in f.norms if n.scale is not scale)),
        kernel=RMS_NORM if target is RMPAD else "",
        same_numbers=True,
    )


def _without_rotaries(target: Target, style: RotaryStyle) -> Mutation:
    return Mutation(
        f"{target.name}/rotary: {style.name.lower()}",
        target,
        facts=lambda f: replace(f, rotaries=tuple(r for r in f.rotaries if r.style is not style)),
        same_numbers=True,
    )


def _without_experts(target: Target) -> Mutation:
    return Mutation(
        f"{target.name}/experts",
        target,
        target=lambda t: replace(t, experts_mixin=""),
        on=lambda f: bool(f.experts),
        kernel=EXPERTS,
        same_numbers=True,
    )


def _without_expert_classes(target: Target) -> Mutation:
    return Mutation(
        f"{target.name}/classes of experts",
        target,
        facts=lambda f: replace(f, experts=()),
        kernel=EXPERTS,
        same_numbers=True,
    )


def _without_wrappers(target: Target) -> Mutation:
    return Mutation(
        f"{target.name}/wrappers",
        target,
        target=lambda t: replace(t, models=None),
        on=lambda f: bool(f.with_role(Role.WRAPPER)),
    )


def _with_interfaces(target: Target) -> Mutation:
    return Mutation(
        f"{target.name}/attention: every one an interface",
        target,
        facts=lambda f: replace(f, attentions=tuple((name, AttentionStyle.INTERFACE) for name, _ in f.attentions)),
    )


def _without_embedders(target: Target) -> Mutation:
    return Mutation(f"{target.name}/embedders", target, facts=lambda f: replace(f, embedders=()))


EARLIER = {"capture_outputs": "check_model_inputs"}
"""Decorators and what did their work in releases before the pinned one: taken away together."""


def _without_decorator(target: Target, name: str) -> Mutation:
    return Mutation(
        f"{target.name}/decorator: {name}",
        target,
        target=lambda t: _dropping(t, {name, EARLIER.get(name, name)}),
        on=lambda f: True,
    )


def _without_check(target: Target, rule: str, expected: str) -> Mutation:
    def less(check: Check) -> Check:
        return lambda module, family: [d for d in check(module, family) if (d.rule, d.expected) != (rule, expected)]

    return Mutation(
        f"{target.name}/{rule.rsplit('/')[-1]}: {expected}",
        target,
        target=lambda t: replace(t, checks=tuple(map(less, t.checks))),
        lifts=rule,
    )


RULES: tuple[Mutation, ...] = tuple(_without_step(t, step) for t in (QEFF, RMPAD) for step in t.steps)


def _dropping(target: Target, names: set[str]) -> Target:
    dropped = {**target.dropped_decorators, **dict.fromkeys(names, "to see what comes of it")}
    return replace(target, kept_decorators=target.kept_decorators - names, dropped_decorators=dropped)


FACTS: tuple[Mutation, ...] = (
    *(_without_norms(QEFF, scale) for scale in NormScale),
    *(_without_rotaries(QEFF, style) for style in RotaryStyle),
    *(_without_norms(RMPAD, scale) for scale in NormScale),
    _without_experts(RMPAD),
    _without_expert_classes(RMPAD),
    _without_wrappers(RMPAD),
    _with_interfaces(RMPAD),
    _without_embedders(RMPAD),
    *(_without_decorator(RMPAD, name) for name in sorted(RMPAD.kept_decorators - set(EARLIER.values()))),
)
LIFTED: tuple[Mutation, ...] = tuple(
    _without_check(RMPAD, rule, expected) for rule, all_expected in CHECKS.items() for expected in all_expected
)
MUTATIONS: dict[str, Mutation] = {m.name: m for m in (*RULES, *FACTS, *LIFTED)}
