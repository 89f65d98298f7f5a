"""Where token ids become hidden states: the carriers that take ``input_ids`` and hand them to no other carrier."""

from __future__ import annotations

from collections.abc import Mapping

from codegen.ir import Carrier, Role
from codegen.syntax import parameters
from codegen.upstream import UpstreamModule

IDS = "input_ids"


def embedders(module: UpstreamModule, carriers: tuple[Carrier, ...]) -> tuple[str, ...]:
    """Names of the carriers, the heads left out, whose forward has ``input_ids`` while none below them has."""
    below: Mapping[str, set[str]] = {c.name: {n for _, classes in c.calls for n in classes} for c in carriers}

    def takes_ids(name: str) -> bool:
        method = module.method(name, "forward")
        return method is not None and IDS in parameters(method.node)

    def reaches_ids(name: str) -> bool:
        return any(takes_ids(n) or reaches_ids(n) for n in below.get(name, ()))

    return tuple(c.name for c in carriers if c.role is not Role.HEAD and takes_ids(c.name) and not reaches_ids(c.name))
