"""What the compiler says when it does not do something: one record per refusal, with the place and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, order=True)
class Span:
    """A place in an upstream file; ``line`` and ``column`` count from 1, 0 when only the file is known."""

    path: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}:{self.column}" if self.line else self.path


@dataclass(frozen=True, order=True)
class Diagnostic:
    """One refusal. ``rule`` is a rule or recognizer id (see ``regraft rules``)."""

    span: Span
    rule: str
    expected: str
    found: str
    help: str
    family: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.span}: [{self.rule}] expected {self.expected}; found {self.found}. help: {self.help}"

    def as_dict(self) -> dict[str, object]:
        return {
            "file": self.span.path,
            "line": self.span.line,
            "column": self.span.column,
            "rule": self.rule,
            "family": self.family,
            "expected": self.expected,
            "found": self.found,
            "help": self.help,
        }


class Refused(Exception):
    """A family cannot be compiled; carries the diagnostics that say why."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__("; ".join(map(str, diagnostics)))
        self.diagnostics = diagnostics


class InputError(Exception):
    """The compiler's own input (release, file, family name, option) is unusable; shown as one line, exit code 2."""


SOURCE = "source"
"""Rule id of diagnostics that say an upstream file is damaged, not that the compiler does not know it."""


def damaged(span: Span, expected: str, found: str) -> Diagnostic:
    return Diagnostic(span, SOURCE, expected, found, "the file is damaged, or newer than this compiler; fetch it again")


class SourceError(InputError):
    """One upstream file cannot be read."""

    def __init__(self, message: str, diagnostic: Diagnostic) -> None:
        super().__init__(message)
        self.diagnostic = diagnostic


class MissingSourceError(SourceError):
    """One upstream file is not there."""
