"""What a target is made of."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from codegen.ir import NormScale, Role, RotaryStyle
from codegen.rules.base import Rule


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
