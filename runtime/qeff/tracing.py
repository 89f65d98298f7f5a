"""Whether values can be looked at."""

import torch


def values_are_known() -> bool:
    """False while a graph is recorded: sizes and contents then stand for any call's, so checks on them say nothing."""
    return not (torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined,no-untyped-call]
