"""Upstream's factories of causal masks, which models call with keywords."""

from __future__ import annotations

import libcst as cst

from codegen.syntax import one_line

BUILDERS = ("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask")
AND, OR = "and_mask_function", "or_mask_function"  # parameters that take a function over indices
_TRUE = "lambda *args: torch.tensor(True, dtype=torch.bool)"


def adds_nothing(argument: cst.Arg) -> bool:
    """Whether it is ``and True``: upstream's way to have the mask written out, as the variants' always are."""
    return argument.keyword is not None and argument.keyword.value == AND and one_line(argument.value) == _TRUE
