"""What the model does with its cache beside ``update``: anything but its length needs a state this target has not."""

from __future__ import annotations

import libcst as cst

from codegen.diagnostics import Diagnostic
from codegen.syntax import code, find, names, parameters, walk
from codegen.upstream import UpstreamModule

KNOWN = ("update", "get_seq_length")
CACHES = ("past_key_values", "past_key_value", "layer_past", "cache_params")
CROSS = {"EncoderDecoderCache", "is_cross_attention"}


def unknown_uses(module: UpstreamModule, classes: tuple[str, ...]) -> list[Diagnostic]:
    """One diagnostic per class that reads or writes another attribute of a cache. Branches that only run
    for an encoder-decoder cache are left out: the engine never passes one."""
    result: dict[str, Diagnostic] = {}
    for cls in classes:
        for method in module.reachable_methods(cls):
            caches = {p for p in parameters(method.node) if p in CACHES}
            if not caches:
                continue
            skipped = {
                id(n)
                for branch in walk(method.node.body)
                if isinstance(branch, cst.If | cst.IfExp) and names(branch.test) & CROSS
                for n in walk(branch.body)
            }
            for attribute in find(method.node.body, cst.Attribute):
                if not (isinstance(attribute.value, cst.Name) and attribute.value.value in caches):
                    continue
                if attribute.attr.value not in KNOWN and id(attribute) not in skipped:
                    where = f"{method.owner}.{method.name}"
                    result.setdefault(
                        cls,
                        Diagnostic(
                            module.span(where, attribute),
                            "recognize/cache-use",
                            "a cache that is only updated and asked for its length",
                            f"`{code(attribute)}`",
                            "convolution, recurrent and shared states have no position-addressed buffer yet",
                        ),
                    )
    return list(result.values())
