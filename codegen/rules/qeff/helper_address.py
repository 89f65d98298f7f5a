"""``qeff/helper-address``: methods that forward calls on its own class get what they need of the cache's address."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.carriers import CARRIED, is_cache_update
from codegen.recognize.earlier_masks import earlier_masks
from codegen.recognize.mask_factories import BUILDERS
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.cache_address import with_parameters
from codegen.rules.qeff.causal_table import table_rows
from codegen.rules.qeff.mask_builder import NEEDED
from codegen.syntax import arguments, find, names, parameters, self_attribute, with_keywords


class HelperAddress:
    id = "qeff/helper-address"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE, Role.LAYER, Role.ATTENTION})
    summary = "passes position_ids, batch_index or comp_ctx_lengths to the class's own helper methods that need them"
    why = "a mask or a cache write in a helper method needs the same address as in forward"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None):
        return self._mask(x, past_key_values=past_key_values)
    def _mask(self, x, past_key_values):
        return create_causal_mask(inputs_embeds=x, past_key_values=past_key_values)
""",
            "CaseModel._mask",
            """
    def _mask(self, x, past_key_values, position_ids: torch.LongTensor | None = None, comp_ctx_lengths: torch.Tensor | None = None):
        return create_causal_mask(inputs_embeds=x, past_key_values=past_key_values)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, past_key_values=None):
        return self._mask(x, past_key_values=past_key_values)
    def _mask(self, x, past_key_values):
        return create_causal_mask(inputs_embeds=x, past_key_values=past_key_values)
""",
            "CaseModel.forward",
            """
    def forward(self, x, past_key_values=None):
        return self._mask(x, past_key_values=past_key_values, position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x):
        return self._scale(x)
    def _scale(self, x):
        return x * 2
""",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        edits: list[Edit] = []
        if function.name.value != "forward":
            missing = [n for n in _needed(site, function.name.value, set()) if n not in parameters(function)]
            if missing:
                edits.append(Edit(function.params, with_parameters(function.params, missing)))
        for call in find(function.body, cst.Call):
            name = self_attribute(call.func)
            wanted = _needed(site, name, set()) if name is not None else ()
            if wanted:
                edits.append(Edit(call, with_keywords(call, {n: n for n in wanted if n not in arguments(call)})))
        return Edits(edits) if edits else NotApplicable()


def _needed(site: Site, name: str, above: set[str]) -> tuple[str, ...]:
    """What of the address upstream's method of that name will need, itself or through other methods."""
    method = site.module.method(site.cls, name)
    if method is None or name == "forward" or name in above:
        return ()
    body = method.node.body
    needed: set[str] = set()
    if names(body) & set(BUILDERS) or earlier_masks(site.module, site.cls, method.node):
        needed |= set(NEEDED)
    if table_rows(method.node):
        needed.add("position_ids")
    for call in find(body, cst.Call):
        if is_cache_update(call):
            needed |= set(CARRIED)
        inner = self_attribute(call.func)
        if inner is not None:
            needed |= set(_needed(site, inner, above | {name}))
    return tuple(n for n in CARRIED if n in needed)
