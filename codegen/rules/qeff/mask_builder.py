"""``qeff/mask-builder``: upstream's mask factories are swapped for those that need positions only."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.extended_mask import SOURCES as EXTENDED_SOURCES
from codegen.rules.qeff.extended_mask import extended_masks
from codegen.syntax import (
    arguments,
    assignment,
    code,
    every_statement,
    find,
    keyword_argument,
    names,
    walk,
    with_keywords,
)

SOURCE = "runtime.qeff.masks"
BUILDERS = ("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask")
NEEDED = {"position_ids": "position_ids", "comp_ctx_lengths": "comp_ctx_lengths"}
OLD_LABELS = ("input_embeds",)  # spelling of inputs_embeds in some callers; the builder needs neither
CONSTANT_TRUE = "lambda *args: torch.tensor(True, dtype=torch.bool)"


class MaskBuilder:
    id = "qeff/mask-builder"
    roles = frozenset({Role.HEAD, Role.BACKBONE, Role.WRAPPER, Role.LAYER})
    summary = "builds boolean masks from position_ids and the buffer's length"
    why = "no attention mask is an input of the graph; padding is position -1 and windows are counted in positions"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, position_ids):
        causal_mask = create_causal_mask(config=self.config, inputs_embeds=x)
        return causal_mask
""",
            "CaseModel.forward",
            """
    def forward(self, x, position_ids):
        causal_mask = create_causal_mask(config=self.config, inputs_embeds=x, position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths)
        return causal_mask
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, position_ids):
        mask_kwargs = {"config": self.config, "position_ids": position_ids}
        return {"full": create_causal_mask(**mask_kwargs)}
""",
            "CaseModel.forward",
            """
    def forward(self, x, position_ids):
        mask_kwargs = {"config": self.config, "position_ids": position_ids, "comp_ctx_lengths": comp_ctx_lengths}
        return {"full": create_causal_mask(**mask_kwargs)}
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask, position_ids):
        return self.get_extended_attention_mask(attention_mask, x.shape)
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask, position_ids):
        return create_decoder_mask(self.config, attention_mask, past_key_values=QEffDynamicCache.from_legacy_cache(past_key_values), position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x):
        return self.keep(create_causal_mask)
""",
            "CaseModel.forward",
            refuses="self.keep(create_causal_mask)",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        extended = extended_masks(function)
        used = {n for n in names(function.body) if n in BUILDERS}
        if not used:
            return Edits(extended, EXTENDED_SOURCES) if extended else NotApplicable()
        aliases = set(used)
        understood: set[int] = set()
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is not None and isinstance(bound[0], cst.Name) and _chooses_builder(bound[1]):
                aliases.add(bound[0].value)
                understood |= {id(n) for n in find(bound[1], cst.Name)}
        edits: list[Edit] = []
        tables: set[str] = set()
        for call in find(function.body, cst.Call):
            if not (isinstance(call.func, cst.Name) and call.func.value in aliases):
                continue
            understood.add(id(call.func))
            spread = [a for a in call.args if a.star == "**"]
            if any(not isinstance(a.value, cst.Name) for a in spread) or any(
                a.keyword is None and not a.star for a in call.args
            ):
                return self._refuse(site, call)
            tables |= {a.value.value for a in spread if isinstance(a.value, cst.Name)}
            if not spread:
                edits.append(Edit(call, _position_call(call)))
        for line in every_statement(function.body):
            bound = assignment(line)
            if bound is None or not isinstance(bound[0], cst.Name) or bound[0].value not in tables:
                continue
            if isinstance(bound[1], cst.Dict):
                edits.append(Edit(bound[1], _with_entries(bound[1])))
            elif not (isinstance(bound[1], cst.Call) and code(bound[1]).endswith(".copy()")):
                return self._refuse(site, line)
        for name in find(function.body, cst.Name):
            if name.value in used and id(name) not in understood:
                return self._refuse(site, name)
        return Edits(edits, dict.fromkeys(used, SOURCE))

    def _refuse(self, site: Site, node: cst.CSTNode) -> Match:
        line = next((s for s in every_statement(site.function.body) if any(n is node for n in _deep(s))), site.function)
        return site.refusal(
            self.id,
            node,
            "a mask factory called with keywords, or with one ** table built in this method",
            f"`{code(node) if isinstance(node, cst.Call) else code(line)}`",
            "teach rules/qeff/mask_builder.py this call",
        )


def _deep(node: cst.CSTNode) -> list[cst.CSTNode]:
    return list(walk(node))


def _chooses_builder(value: cst.BaseExpression) -> bool:
    """``create_causal_mask if ... else create_sliding_window_causal_mask``, or one of them alone."""
    if isinstance(value, cst.IfExp):
        return _chooses_builder(value.body) and _chooses_builder(value.orelse)
    return isinstance(value, cst.Name) and value.value in BUILDERS


def _position_call(call: cst.Call) -> cst.Call:
    kept = []
    for arg in call.args:
        label = arg.keyword.value if arg.keyword is not None else ""
        if label == "and_mask_function" and code(arg.value) == CONSTANT_TRUE:
            continue  # "and True" is upstream's way to have the mask written out; ours always is
        kept.append(keyword_argument("inputs_embeds", code(arg.value)) if label in OLD_LABELS else arg)
    return with_keywords(call.with_changes(args=kept), {k: v for k, v in NEEDED.items() if k not in arguments(call)})


def _with_entries(table: cst.Dict) -> cst.Dict:
    present = {
        str(e.key.evaluated_value)
        for e in table.elements
        if isinstance(e, cst.DictElement) and isinstance(e.key, cst.SimpleString | cst.ConcatenatedString)
    }
    new = [
        cst.DictElement(cst.SimpleString(f'"{key}"'), cst.Name(value))
        for key, value in NEEDED.items()
        if key not in present
    ]
    plain = [e.with_changes(comma=cst.MaybeSentinel.DEFAULT) for e in table.elements]
    return table.with_changes(elements=[*plain, *new])
