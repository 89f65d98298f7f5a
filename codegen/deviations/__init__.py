"""Declared exceptions of single families: data with a reason and a condition for removal, never code.

A deviation can only refuse. It is for what the text does not show: a family whose variant compiles, and whose upstream
cannot be matched. To see whether one is still needed, take it out and run `regraft verify`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Deviation:
    """Why a family is refused for some targets although every rule matches, and when to drop this."""

    reason: str
    until: str
    targets: frozenset[str]


REFUSED: dict[str, Deviation] = {}
