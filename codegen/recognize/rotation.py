"""Which functions rotate queries and keys by halves: ``(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)``."""

from __future__ import annotations

import ast

from codegen.recognize.wording import says
from codegen.syntax import names, parameters
from codegen.upstream import UpstreamModule

SIGNATURE = ("q", "k", "cos", "sin")
# Bodies of the function that does it, in any wording.
HALVES = (
    """
x1 = x[..., :x.shape[-1] // 2]
x2 = x[..., x.shape[-1] // 2:]
return torch.cat((-x2, x1), dim=-1)
""",
    """
first_half, second_half = torch.chunk(x, 2, dim=-1)
first_ = first_half * cos - second_half * sin
second_ = second_half * cos + first_half * sin
return torch.cat((first_, second_), dim=-1)
""",
)


def is_half_rotation(module: UpstreamModule, name: str) -> bool:
    """Whether the function ``name(q, k, cos, sin, ...)`` of this file rotates by halves.

    Its other lines may cast, slice and join; the runtime compares its numbers with the kernel's before it is replaced.
    """
    function = module.functions.get(name)
    if function is None or parameters(function)[:4] != SIGNATURE:
        return False
    called = names(function.body) & module.functions.keys()
    rotation = module.definition(*called) if len(called) == 1 else None
    return isinstance(rotation, ast.FunctionDef) and any(says(rotation, body) for body in HALVES)
