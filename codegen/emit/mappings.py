"""The inference target's extras: what becomes an ONNX function, and the class mappings of the two transforms."""

from __future__ import annotations

from codegen.derive import EmittedModule, Variant
from codegen.emit.extras import Extras, class_name, ordered
from codegen.ir import Role
from codegen.recognize.generation import recomputes_past

RECOMPUTES = "qeff_recompute_past_beyond_original_length"


def _before(emitted: EmittedModule, variant: Variant) -> list[str]:
    if variant.role is not Role.HEAD or not recomputes_past(emitted.module, variant.upstream):
        return []
    return [
        "",
        "    # upstream's generation starts over at that length; so must the engine's",
        f"    {RECOMPUTES} = True",
    ]


def _after(emitted: EmittedModule, variant: Variant) -> list[str]:
    """What the engine may export as ONNX functions: the classes the backbone loops over."""
    if variant.role is not Role.HEAD:
        return []
    looped = [
        callee
        for backbone in emitted.family.with_role(Role.BACKBONE)
        for _, classes in backbone.calls
        for callee in classes
        if any(v.upstream == callee for v in emitted.variants)
    ]
    names = ", ".join(class_name(emitted.target.prefix, c) for c in dict.fromkeys(looped))
    return [
        "def get_submodules_for_export(self) -> set[type[nn.Module]]:\n"
        '    """The repeated blocks, which may become ONNX functions."""\n'
        f"    return {{{names}}}"
    ]


def _tail(emitted: EmittedModule) -> str:
    prefix = emitted.target.prefix
    pairs = [(v.upstream, class_name(prefix, v.upstream)) for v in ordered(emitted)]
    pairs += _siblings(emitted)
    cache = "".join(f"{old}: {new},\n" for old, new in pairs)
    text = f"KV_CACHE_MAPPING = {{{cache}}}"
    norms = "".join(f"{n.name}: {emitted.target.norms[n.scale]},\n" for n in emitted.family.norms)
    return f"{text}\n\nCUSTOM_OPS_MAPPING = {{{norms}}}" if norms else f"{text}\n\nCUSTOM_OPS_MAPPING = {{}}"


def _siblings(emitted: EmittedModule) -> list[tuple[str, str]]:
    """Classes that upstream picks instead of the eager one, by name of implementation: same weights, same variant."""
    result = []
    for table in emitted.module.constants:
        entries = emitted.module.dispatch_table(table)
        eager = entries.get("eager")
        if eager is not None and any(v.upstream == eager for v in emitted.variants):
            result += [
                (cls, class_name(emitted.target.prefix, eager))
                for cls in dict.fromkeys(entries.values())
                if cls != eager
            ]
    return result


MAPPINGS = Extras(_before, _after, _tail, frozenset({"KV_CACHE_MAPPING", "CUSTOM_OPS_MAPPING"}))
