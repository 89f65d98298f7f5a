"""``qeff/cache-address``: the cache's address travels from the head to the attention as explicit arguments."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.calls import callees
from codegen.recognize.carriers import CARRIED, bound_by_loops
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import arguments, find, keyword_catch_all, parameters, with_keywords

ANNOTATIONS = {"position_ids": "torch.LongTensor | None"}
DEFAULT_ANNOTATION = "torch.Tensor | None"


class CacheAddress:
    id = "qeff/cache-address"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE, Role.LAYER, Role.ATTENTION})
    summary = "passes position_ids, batch_index and comp_ctx_lengths down to the attention"
    why = "the key/value buffer is addressed by position and cache row, not by how much was seen before"
    cases = (
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None, **kwargs):
        return past_key_values.update(x, x, self.layer_idx)

class CaseLayer:
    def __init__(self, config):
        self.attn = CaseAttention()
    def forward(self, x, past_key_values=None, **kwargs):
        return self.attn(x, past_key_values=past_key_values, **kwargs)
""",
            "CaseLayer.forward",
            """
    def forward(self, x, past_key_values=None, position_ids: torch.LongTensor | None = None, batch_index: torch.Tensor | None = None, comp_ctx_lengths: torch.Tensor | None = None, **kwargs):
        return self.attn(x, past_key_values=past_key_values, position_ids=position_ids, batch_index=batch_index, comp_ctx_lengths=comp_ctx_lengths, **kwargs)
""",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        return past_key_values.update(x, x, self.layer_idx)

class CaseWrapper:
    def __init__(self, config):
        self.attn = CaseAttention()
    def forward(self, *args, **kwargs):
        return self.attn(*args, **kwargs)
""",
            "CaseWrapper.forward",
        ),
        Case(
            """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        return past_key_values.update(x, x, self.layer_idx)

class CaseInner:
    def __init__(self, config):
        self.attn = CaseAttention()
    def forward(self, *args, **kwargs):
        return self.attn(*args, **kwargs)

class CaseLayer:
    def __init__(self, config):
        self.inner = CaseInner()
    def forward(self, x, past_key_values=None):
        inner = self.inner
        return inner.attn(x, past_key_values=past_key_values)
""",
            "CaseLayer.forward",
            refuses="none that is known to be one",
        ),
    )

    def match(self, site: Site) -> Match:
        carrier = site.family.carrier(site.cls)
        if carrier is None or site.function.name.value != "forward":
            return NotApplicable()
        function = site.function
        edits: list[Edit] = []
        present = parameters(function)
        star = function.params.star_arg
        if isinstance(star, cst.Param) and keyword_catch_all(function) is not None:
            return NotApplicable()  # forward(*args, **kwargs) hands everything on as it is
        missing = [name for name in CARRIED if name not in present]
        if missing:
            edits.append(Edit(function.params, with_parameters(function.params, missing)))
        loops = bound_by_loops(function)
        found = False
        for call in find(function.body, cst.Call):
            called = [c for c in callees(site.module, site.cls, call, loops) if site.family.carrier(c) is not None]
            if called:
                given = _positional(site, called[0], call)
                wanted = {name: name for name in CARRIED if name not in given and name not in arguments(call)}
                if wanted:
                    edits.append(Edit(call, with_keywords(call, wanted)))
                found = True
        held = [name for classes in site.module.submodules(site.cls).values() for name in classes]
        leading = [name for name in dict.fromkeys(held) if site.family.carrier(name) is not None]
        if leading and not found:
            return site.refusal(
                self.id,
                None,
                f"a call of {' or '.join(leading)}, through which the cache goes on",
                "none that is known to be one",
                "known are calls of `self.x`, of `self.x.y`, and of a name bound to `self.x` or by a loop over it",
            )
        return Edits(edits) if edits else NotApplicable()


def with_parameters(params: cst.Parameters, new: list[str]) -> cst.Parameters:
    """The parameters with optional ones of the cache's address added at the end."""
    added = [
        cst.Param(
            name=cst.Name(name),
            annotation=cst.Annotation(cst.parse_expression(ANNOTATIONS.get(name, DEFAULT_ANNOTATION))),
            default=cst.Name("None"),
            equal=cst.AssignEqual(),
        )
        for name in new
    ]
    if isinstance(params.star_arg, cst.Param | cst.ParamStar):
        return params.with_changes(kwonly_params=[*_defaulted(params.kwonly_params), *added])
    return params.with_changes(params=[*_defaulted(params.params), *added])


def _defaulted(params: object) -> list[cst.Param]:
    """Existing parameters with plain commas, so that new ones can follow."""
    assert isinstance(params, tuple | list)
    return [
        p.with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_param=cst.SimpleWhitespace("")) for p in params
    ]


def _positional(site: Site, callee: str, call: cst.Call) -> frozenset[str]:
    """Which of the callee's parameters the call already gives by position."""
    method = site.module.method(callee, "forward")
    if method is None:
        return frozenset()
    count = sum(1 for arg in call.args if arg.keyword is None and not arg.star)
    return frozenset(parameters(method.node)[:count])
