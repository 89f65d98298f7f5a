"""What a head's ``prepare_inputs_for_generation`` does to the cache as the text grows."""

from __future__ import annotations

import libcst as cst

from codegen.syntax import assignment, code, dotted, every_statement, find
from codegen.upstream import UpstreamModule

CACHE = "past_key_values"
LIMIT = "original_max_position_embeddings"


def recomputes_past(module: UpstreamModule, head: str) -> bool:
    """Whether generation drops the cache and starts over once the text outgrows the original context length: rotary
    frequencies change there, and what was cached was rotated with the old ones."""
    method = module.method(head, "prepare_inputs_for_generation")
    if method is None:
        return False
    return any(LIMIT in code(branch.test) and _drops_cache(branch) for branch in find(method.node.body, cst.If))


def _drops_cache(branch: cst.If) -> bool:
    return any(
        (bound := assignment(line)) is not None and dotted(bound[0]) == CACHE and code(bound[1]) == "None"
        for line in every_statement(branch.body)
    )
