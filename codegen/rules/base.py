"""What a rule is: it looks at one method and proposes edits, or says why there is nothing to do, or refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.ir import FamilyIR, Role
from codegen.syntax import Replacement, replaced
from codegen.upstream import UpstreamModule


@dataclass(frozen=True)
class Site:
    """One method (or module-level function: ``cls`` is empty) in the state the earlier rules left it."""

    module: UpstreamModule
    family: FamilyIR
    cls: str
    role: Role
    function: cst.FunctionDef
    owner: str = ""  # the class of the file that defines the method

    @property
    def where(self) -> str:
        """``Class.method`` or ``function``, as upstream has it."""
        return f"{self.owner or self.cls}.{self.function.name.value}" if self.cls else self.function.name.value

    def refusal(
        self, rule: str, node: cst.CSTNode | None, expected: str, found: str, help: str, where: str = ""
    ) -> Refusal:
        """``where`` names another method of the file, when the node is in that."""
        return Refusal(Diagnostic(self.module.span(where or self.where, node), rule, expected, found, help))


@dataclass(frozen=True)
class Edit:
    """One node of the method and what takes its place; ``node`` is found again by identity."""

    node: cst.CSTNode
    new: Replacement


@dataclass(frozen=True)
class NotApplicable:
    """The pattern is not in this method."""


@dataclass(frozen=True)
class Refusal:
    """The pattern is there in a shape the rule does not know."""

    diagnostic: Diagnostic


@dataclass(frozen=True)
class Edits:
    """A match. ``names`` says where names in the new text come from: name -> module to import it from."""

    edits: Sequence[Edit]
    names: dict[str, str] = field(default_factory=dict)


Match = Edits | NotApplicable | Refusal


@dataclass(frozen=True)
class Case:
    """A rule's own example: a module, the method looked at, and what must come of it.

    ``after`` is the method's new text; ``None`` means not applicable; a Diagnostic's ``found`` part means refused.
    """

    source: str
    where: str
    after: str | None = None
    refuses: str | None = None


class Rule(Protocol):
    """``match`` holds every condition and changes nothing; `rewrite` applies what it found and cannot fail."""

    @property
    def id(self) -> str: ...

    @property
    def roles(self) -> frozenset[Role]: ...

    @property
    def summary(self) -> str: ...

    @property
    def why(self) -> str: ...

    @property
    def cases(self) -> tuple[Case, ...]: ...

    def match(self, site: Site) -> Match: ...


def rewrite(function: cst.FunctionDef, edits: Edits) -> cst.FunctionDef:
    """The method with the edits made."""
    return replaced(function, {edit.node: edit.new for edit in edits.edits})
