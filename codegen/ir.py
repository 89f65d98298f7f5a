"""What the recognizers know of a family: names and facts, frozen, no syntax nodes.

Principles: a fact is read from the text and carries no family name; an enum member is one shape the rules know, and a
shape that is not a member is a refusal, never a default.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    """What a class does in the model, derived from the calls it makes."""

    HEAD = "head"  # the class of the causal-LM mapping: backbone plus output projection
    WRAPPER = "wrapper"  # stands between head and backbone
    BACKBONE = "backbone"  # embeds tokens, builds masks, loops over layers
    LAYER = "layer"  # stands between backbone and attention
    ATTENTION = "attention"  # writes the key/value cache
    EXPERTS = "experts"  # loops over experts
    ROTARY = "rotary"  # cos and sin of the positions
    NORM = "norm"  # root-mean-square norm
    PART = "part"  # anything else below the head that a rule changes


@dataclass(frozen=True)
class Carrier:
    """A class through which the cache travels from the head down to the attention.

    ``calls`` maps each ``self`` attribute that holds carriers to their class names.
    """

    name: str
    role: Role
    calls: tuple[tuple[str, tuple[str, ...]], ...]

    def callees(self, attribute: str) -> tuple[str, ...]:
        return dict(self.calls).get(attribute, ())


class NormScale(Enum):
    """How a root-mean-square norm applies its weight (all compute the mean square in float32)."""

    CAST_THEN_WEIGHT = "x cast back, then multiplied by weight"
    ONE_PLUS_WEIGHT = "multiplied by 1 + weight in float32, then cast back"
    WEIGHT_THEN_CAST = "multiplied by weight in float32, then cast back"
    NO_WEIGHT = "no weight"


@dataclass(frozen=True)
class NormFact:
    """A root-mean-square norm class and how it scales; ``method`` is the evidence (where it was read)."""

    name: str
    scale: NormScale
    method: str


class RotaryStyle(Enum):
    """What a rotary class yields for ``position_ids``."""

    COS_SIN = "a pair of real rows"
    COMPLEX = "one complex row, cos + i sin"


@dataclass(frozen=True)
class RotaryFact:
    """A rotary class whose forward yields rows for ``position_ids``."""

    name: str
    method: str
    style: RotaryStyle = RotaryStyle.COS_SIN


class AttentionStyle(Enum):
    """Who does an attention's arithmetic, and with which mask."""

    INTERFACE = "upstream's attention interface, whose eager function is scaled dot products of known extras"
    OWN = "its own code, which adds a mask to the scores"


@dataclass(frozen=True)
class FamilyIR:
    """Everything recognized in one modeling file, for the heads that were asked for."""

    path: str
    heads: tuple[tuple[str, str], ...]  # (model type, head class)
    carriers: tuple[Carrier, ...]  # head first, attention last
    reachable: tuple[str, ...]  # every class below the heads, carriers included
    norms: tuple[NormFact, ...] = ()
    rotaries: tuple[RotaryFact, ...] = ()
    attentions: tuple[tuple[str, AttentionStyle], ...] = ()
    experts: tuple[str, ...] = ()  # classes of stacked expert weights, whose loop upstream itself may replace
    embedders: tuple[str, ...] = ()  # carriers that take token ids and hand none on: they embed them

    def carrier(self, name: str) -> Carrier | None:
        return next((c for c in self.carriers if c.name == name), None)

    def with_role(self, role: Role) -> tuple[Carrier, ...]:
        return tuple(c for c in self.carriers if c.role is role)

    @property
    def adds_masks(self) -> bool:
        """Whether some attention needs its mask as a tensor to add."""
        return any(style is AttentionStyle.OWN for _, style in self.attentions)
