"""All facts of one modeling file for the heads that are asked for."""

from __future__ import annotations

from codegen.diagnostics import Diagnostic, Refused
from codegen.ir import Carrier, FamilyIR, NormFact, Role, RotaryFact
from codegen.recognize.cache_use import unknown_receivers, unknown_uses
from codegen.recognize.carriers import carriers, reachable_classes
from codegen.recognize.eager_attention import attention_style
from codegen.recognize.embedders import embedders
from codegen.recognize.foreign_code import foreign_code
from codegen.recognize.mask_path import masks_withheld
from codegen.recognize.norm import norm
from codegen.recognize.rotary import rotary
from codegen.recognize.stacked_experts import stacks_experts
from codegen.upstream import UpstreamModule


def recognize(module: UpstreamModule, heads: tuple[tuple[str, str], ...]) -> FamilyIR:
    """Raises Refused when a head has no path to a cache, rotates in an unknown way, keeps its mask from an attention,
    or is not all in its file."""
    # upstream's own files hold all of a model
    foreign = () if module.is_upstream else [d for _, head in heads for d in foreign_code(module, head)]
    if foreign:
        raise Refused(*dict.fromkeys(foreign))
    found: dict[str, Carrier] = {}
    reachable: dict[str, None] = {}
    for head in dict.fromkeys(h for _, h in heads):
        found.update((c.name, c) for c in carriers(module, head))
        reachable.update(dict.fromkeys(reachable_classes(module, head)))
    norms: list[NormFact] = []
    rotaries: list[RotaryFact] = []
    problems: list[Diagnostic] = []
    for name in reachable:
        norm_fact = norm(module, name)
        if norm_fact is not None:
            norms.append(norm_fact)
        rotary_fact = rotary(module, name)
        if isinstance(rotary_fact, RotaryFact):
            rotaries.append(rotary_fact)
        elif isinstance(rotary_fact, Diagnostic):
            problems.append(rotary_fact)
    problems += unknown_uses(module, tuple(reachable))
    problems += unknown_receivers(module, tuple(found))
    problems += masks_withheld(module, tuple(found))
    if problems:
        raise Refused(*problems)
    return FamilyIR(
        module.path,
        heads,
        tuple(found.values()),
        tuple(reachable),
        tuple(norms),
        tuple(rotaries),
        tuple((c.name, attention_style(module, c.name)) for c in found.values() if c.role is Role.ATTENTION),
        tuple(name for name in reachable if stacks_experts(module, name)),
        embedders(module, tuple(found.values())),
    )
