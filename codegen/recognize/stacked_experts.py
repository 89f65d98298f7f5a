"""Classes of stacked expert weights, whose loop over experts upstream swaps for other implementations."""

from __future__ import annotations

import libcst as cst

from codegen.syntax import dotted
from codegen.upstream import UpstreamModule

DECORATOR = "use_experts_implementation"


def stacks_experts(module: UpstreamModule, cls: str) -> bool:
    """Whether the class is decorated with `DECORATOR`, called or not."""
    for decorator in module.classes[cls].decorators:
        call = decorator.decorator
        if dotted(call.func if isinstance(call, cst.Call) else call) == DECORATOR:
            return True
    return False
