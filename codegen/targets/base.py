"""What a target is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from codegen.diagnostics import Diagnostic
from codegen.fingerprint.canonical import DOCUMENTATION_DECORATORS
from codegen.ir import FamilyIR, NormScale, Role, RotaryStyle
from codegen.rules.base import Rule
from codegen.upstream import UpstreamModule

DOCUMENTATION = dict.fromkeys(DOCUMENTATION_DECORATORS, "it writes a docstring")
"""Decorators that every target drops."""
HUB_KERNEL = "it lets a downloaded kernel take the function's place, which a variant does not call"

Check = Callable[[UpstreamModule, FamilyIR], list[Diagnostic]]


class Expect(Enum):
    """How often a step must apply among the classes of its role; anything else refuses the family."""

    ONCE_PER_CLASS = "once in every class of the role"
    SOMEWHERE = "in at least one class"
    OPTIONAL = "only where the pattern is"


@dataclass(frozen=True)
class Step:
    rule: Rule
    expect: Expect = Expect.OPTIONAL
    role: Role | None = None  # the role whose classes are counted; all of the rule's roles when None
    feature: str = ""  # what is switched on at run time to have what the rule does; nothing where it is all or nothing


@dataclass(frozen=True)
class Target:
    """A set of variants: package under ``generated/``, class prefix, pipeline, and runtime classes by fact."""

    name: str
    prefix: str
    title: str
    steps: tuple[Step, ...]
    rotary_mixins: dict[RotaryStyle, str]
    norms: dict[NormScale, str]
    names: dict[str, str]  # names that class-level rewrites bring in: name -> module
    gone: dict[str, str]  # names that no derived method may hold -> why
    titles: dict[Role, str]  # what a variant of each role is, for its docstring
    checks: tuple[Check, ...] = ()  # what a family must not do, whatever the rules can do
    models: Role | None = None  # a role whose classes get a variant also where no method changes
    experts_mixin: str = ""  # runtime class put in front of a class of stacked experts, where there is one
    kept_decorators: frozenset[str] = frozenset()  # of upstream's methods, by name
    dropped_decorators: Mapping[str, str] = field(default_factory=dict)  # name -> why a variant is right without it
