"""The training target's extras: which class goes where for which feature, and the functions that patch a model."""

from __future__ import annotations

from codegen.derive import EmittedModule, Variant
from codegen.emit.extras import Extras, class_name, ordered
from codegen.ir import Role

FEATURES = ("rope", "rms_norm", "swiglu", "experts", "cross_entropy", "fused_linear_cross_entropy", "rmpad")
# A feature that no class of a family has -> why, as far as the text of the family says it.
REASONS = {
    "rope": "no rotation of the two halves of a head",
    "rms_norm": "no plain root-mean-square norm",
    "swiglu": "no product of an activation and a value",
    "experts": "no class of stacked expert weights",
    "fused_linear_cross_entropy": "the loss is not one of logits that are a linear projection, scaled or soft-capped",
    "cross_entropy": "the loss is not computed by the model's loss function",
}


def _features(emitted: EmittedModule, variant: Variant) -> list[str]:
    found = {s.feature for s in emitted.target.steps for rule in variant.rules if s.rule.id == rule.id}
    if not variant.rules and not variant.mixin:
        found.add("rmpad")  # hands packed rows on as they are
    if variant.role is Role.EXPERTS:
        found.add("experts")
    if variant.role is Role.HEAD and "cross_entropy_for" in emitted.names:
        found.add("cross_entropy")
    return [feature for feature in FEATURES if feature in found]


def _tail(emitted: EmittedModule) -> str:
    rows = []
    present: set[str] = set()
    norms = {n.name: emitted.target.norms[n.scale] for n in emitted.family.norms}
    variants = {v.upstream: v for v in ordered(emitted)}
    for name in emitted.module.classes:
        if name in variants:
            features = _features(emitted, variants[name])
            cls = class_name(emitted.target.prefix, name)
        elif name in norms:
            features, cls = ["rms_norm"], norms[name]
        else:
            continue
        present |= set(features)
        rows.append(f"{name}: Variant({cls}, {', '.join(repr(f) for f in features)}),\n")
    missing = "".join(f"{f!r}: {REASONS[f]!r},\n" for f in FEATURES if f not in present)
    return "\n\n\n".join(
        [
            f"VARIANTS = variants({{{''.join(rows)}}})\n\nNOT_APPLIED: dict[str, str] = {{{missing}}}",
            _patch(emitted, "liger"),
            _patch(emitted, "rmpad"),
        ]
    )


def _patch(emitted: EmittedModule, kind: str) -> str:
    stem = emitted.module.stem.removeprefix("modeling_")
    registered = "".join(f'@MONKEY_PATCHER.register("{t}", "{kind}")\n' for t, _ in emitted.family.heads)
    if kind == "rmpad":
        return (
            f"{registered}def apply_rmpad_to_{stem}(model: nn.Module | None = None) -> PatchReport:\n"
            '    """Removes padding: of ``model``, or of what is built from now on. No kernels."""\n'
            "    return apply_variants(VARIANTS, NOT_APPLIED, model, rmpad=True)"
        )
    return (
        f"{registered}def apply_liger_kernel_to_{stem}(rope: bool = True, cross_entropy: bool = False, "
        "fused_linear_cross_entropy: bool = True, rms_norm: bool = True, "
        "swiglu: bool = True, geglu: bool = True, experts: bool = True, use_rmpad: bool = False, "
        "model: nn.Module | None = None) -> PatchReport:\n"
        '    """Kernels, and with ``use_rmpad`` no padding: for ``model``, or for what is built from now on."""\n'
        "    return apply_variants(VARIANTS, NOT_APPLIED, model, rope=rope, cross_entropy=cross_entropy, "
        "fused_linear_cross_entropy=fused_linear_cross_entropy, rms_norm=rms_norm, "
        "swiglu=swiglu and geglu, experts=experts, rmpad=use_rmpad)"
    )


def _nothing(emitted: EmittedModule, variant: Variant) -> list[str]:
    return []


NAMES = frozenset({"VARIANTS", "NOT_APPLIED"})
PATCHES = Extras(_nothing, _nothing, _tail, NAMES)
