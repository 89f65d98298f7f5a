"""Layout is the formatter's business: black, by upstream's line length."""

from __future__ import annotations

from functools import lru_cache

import black
from black.mode import TargetVersion

MODE = black.Mode(line_length=119, target_versions={TargetVersion.PY311})


@lru_cache(maxsize=4096)
def formatted(text: str) -> str:
    """What black makes of a whole number of statements. Many families say the same: each text is formatted once.

    Parts put together with the blank lines that black itself would put between them are what black makes of the
    whole; a test formats every generated file again."""
    ended = text.rstrip("\n") + "\n"  # black looks twice at what it changes, be it the last line's end
    return black.format_str(ended, mode=MODE).rstrip("\n")
