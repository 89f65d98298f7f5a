"""Checks on what was derived, before any of it becomes text: what the engine does not have must be gone.

Rules say what they change; this says what no rule may leave behind. The names are the target's data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.syntax import find
from codegen.upstream import UpstreamModule

ID = "verify/leftover"


def leftovers(
    module: UpstreamModule, methods: Iterable[tuple[str, cst.FunctionDef]], gone: Mapping[str, str]
) -> list[Diagnostic]:
    """One diagnostic for each derived method (``Class.method``, node) and name of ``gone`` that is still in it."""
    result = []
    for where, method in methods:
        present = {name.value for name in find(method, cst.Name)}
        for name in sorted(present & gone.keys()):
            result.append(
                Diagnostic(module.span(where), ID, f"no {name} in a variant", f"it is in {where}", gone[name])
            )
    return result
