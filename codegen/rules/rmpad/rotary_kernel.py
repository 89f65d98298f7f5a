"""``rmpad/rotary-kernel``: queries and keys may be rotated by one kernel."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.rotation import is_half_rotation
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import expression, find

FUNCTION = "rotary"


class RotaryKernel:
    id = "rmpad/rotary-kernel"
    roles = frozenset({Role.ATTENTION})
    summary = "asks the runtime for a kernel where the rotation is of the two halves of a head"
    why = "rotating queries and keys reads and writes both several times, and one kernel does it once"
    cases = (
        Case(
            """
def rotate_half(x):
    x1 = x[..., : x.shape[-1] // 2]
    x2 = x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)

def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed

class CaseAttention:
    def forward(self, q, k, cos, sin):
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        return q
""",
            "CaseAttention.forward",
            """
    def forward(self, q, k, cos, sin):
        q, k = rotary(self, apply_rotary_pos_emb)(q, k, cos, sin)
        return q
""",
        ),
        Case(
            """
def rotate_half(x):
    x1 = x[..., ::2]
    x2 = x[..., 1::2]
    return torch.stack([-x2, x1], dim=-1).flatten(-2)

def apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=1):
    cos = cos.unsqueeze(unsqueeze_dim)
    sin = sin.unsqueeze(unsqueeze_dim)
    q_embed = (q * cos) + (rotate_half(q) * sin)
    k_embed = (k * cos) + (rotate_half(k) * sin)
    return q_embed, k_embed

class CaseAttention:
    def forward(self, q, k, cos, sin):
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        return q
""",
            "CaseAttention.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        edits = []
        for call in find(site.function.body, cst.Call):
            if isinstance(call.func, cst.Name) and is_half_rotation(site.module, call.func.value):
                edits.append(Edit(call.func, expression(f"{FUNCTION}(self, ROTATION)", ROTATION=call.func)))
        return Edits(edits, {FUNCTION: "runtime.training.kernels.rotary"}) if edits else NotApplicable()
