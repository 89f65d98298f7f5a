"""How patching speaks: errors, warnings that ``strict`` turns into errors, and nearest names."""

import difflib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_strict: ContextVar[bool] = ContextVar("strict", default=False)
_asked: ContextVar[frozenset[str] | None] = ContextVar("asked", default=None)


class PatchError(ValueError):
    """A patch cannot be applied or undone as asked; nothing was changed unless the message says so."""


def warn(logger: logging.Logger, message: str) -> None:
    """Warns, or under ``strict`` raises.

    Raises:
        PatchError: the call is strict.
    """
    if _strict.get():
        raise PatchError(message)
    logger.warning(message)


@contextmanager
def call(strict: bool, asked: Iterable[str]) -> Iterator[None]:
    """Around a call of a patch function: whether warnings are errors, and which keywords the caller wrote himself."""
    strict_token, asked_token = _strict.set(strict), _asked.set(frozenset(asked))
    try:
        yield
    finally:
        _strict.reset(strict_token)
        _asked.reset(asked_token)


def asked() -> frozenset[str] | None:
    """The keywords that the caller of the registry wrote; None when the patch function was called directly."""
    return _asked.get()


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the known names that are close, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""


def listed(names: Iterable[str]) -> str:
    """The names in order, for a message."""
    return ", ".join(sorted(names)) or "none"
