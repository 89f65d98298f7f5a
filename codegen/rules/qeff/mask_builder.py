"""``qeff/mask-builder``: upstream's mask factories are swapped for those that need positions only."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.mask_factories import AND, BUILDERS, OR, adds_nothing
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.rules.qeff.earlier_mask import earlier_mask_edits
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
NEEDED = {"position_ids": "position_ids", "comp_ctx_lengths": "comp_ctx_lengths"}
OLD_LABELS = ("input_embeds",)  # spelling of inputs_embeds in some callers; the builder needs neither
# a mask that an earlier release's model makes itself, in a method for one implementation of attention or another
BY_HAND = """
class CaseModel:
    def choose(self, attention_mask, embeds, cache_position, past_key_values):
        if is_flash_attention_requested(self.config):
            return None
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        fixed = past_key_values.is_compileable if past_key_values is not None else False
        if self.config._attn_implementation == "sdpa" and not fixed:
            return self.skip(attention_mask, seen)
        dtype = embeds.dtype
        if fixed:
            length = past_key_values.get_max_cache_shape()
        else:
            length = attention_mask.shape[-1]
        # four dimensions
        causal_mask = self.build(attention_mask, sequence_length=embeds.shape[1], target_length=length, dtype=dtype, cache_position=cache_position, batch_size=embeds.shape[0])
        return causal_mask

    def build(self, attention_mask, sequence_length, target_length, dtype, cache_position, batch_size):
        if attention_mask is not None and attention_mask.dim() == 4:
            causal_mask = attention_mask
        else:
            min_dtype = torch.finfo(dtype).min
            causal_mask = torch.full((sequence_length, target_length), fill_value=min_dtype, dtype=dtype, device=cache_position.device)
            if sequence_length != 1:
                causal_mask = torch.triu(causal_mask, diagonal=1)
            causal_mask *= torch.arange(target_length, device=cache_position.device) > cache_position.reshape(-1, 1)
            causal_mask = causal_mask[None, None, :, :].expand(batch_size, 1, -1, -1)
            if attention_mask is not None:
                causal_mask = causal_mask.clone()
                mask_length = attention_mask.shape[-1]
                padding_mask = causal_mask[:, :, :, :mask_length] + attention_mask[:, None, None, :].to(causal_mask.device)
                padding_mask = padding_mask == 0
                causal_mask[:, :, :, :mask_length] = causal_mask[:, :, :, :mask_length].masked_fill(padding_mask, min_dtype)
        return causal_mask
"""


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
    def forward(self, x, position_ids):
        mask_kwargs = {"config": self.config, "input_embeds": x, "position_ids": position_ids}
        return create_causal_mask(**mask_kwargs)
""",
            "CaseModel.forward",
            """
    def forward(self, x, position_ids):
        mask_kwargs = {"config": self.config, "inputs_embeds": x, "position_ids": position_ids, "comp_ctx_lengths": comp_ctx_lengths}
        return create_causal_mask(**mask_kwargs)
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
from ...modeling_attn_mask_utils import _prepare_4d_causal_attention_mask

class CaseModel:
    def forward(self, x, mask, shape, past_key_values=None):
        seen = past_key_values.get_seq_length()
        return _prepare_4d_causal_attention_mask(mask, shape, x, seen)
""",
            "CaseModel.forward",
            """
    def forward(self, x, mask, shape, past_key_values=None):
        seen = past_key_values.get_seq_length()
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=mask, past_key_values=past_key_values, position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths)
""",
        ),
        Case(
            """
from ...modeling_attn_mask_utils import _prepare_4d_causal_attention_mask

class CaseModel:
    def forward(self, x, mask, shape, past_key_values=None):
        seen = past_key_values.get_seq_length()
        return _prepare_4d_causal_attention_mask(mask, shape, x, seen, 4)
""",
            "CaseModel.forward",
        ),
        Case(
            BY_HAND,
            "CaseModel.choose",
            """
    def choose(self, attention_mask, embeds, cache_position, past_key_values):
        # four dimensions
        causal_mask = create_causal_mask(config=self.config, inputs_embeds=embeds, attention_mask=attention_mask, past_key_values=past_key_values, position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths)
        return causal_mask
""",
        ),
        Case(BY_HAND.replace("diagonal=1", "diagonal=2"), "CaseModel.choose"),
        Case(
            BY_HAND.replace("return causal_mask\n\n", "return causal_mask * cache_position\n\n"),
            "CaseModel.choose",
            refuses="`return causal_mask * cache_position`",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, mask):
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=mask, and_mask_function=lambda *args: (torch.tensor(True, dtype=(torch.bool))))
""",
            "CaseModel.forward",
            """
    def forward(self, x, mask):
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=mask, position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, mask):
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=mask, or_mask_function=self.seen)
""",
            "CaseModel.forward",
            refuses="or_mask_function=self.seen",
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
        extended, earlier = extended_masks(function), earlier_mask_edits(site)
        if isinstance(earlier, cst.CSTNode):
            return site.refusal(
                self.id,
                earlier,
                "counted positions read by nothing but what makes the causal mask",
                f"`{code(earlier)}`",
                "derive it from position_ids; teach rules/qeff/earlier_mask.py",
            )
        used = {n for n in names(function.body) if n in BUILDERS}
        if not used:
            sources = {**(EXTENDED_SOURCES if extended else {}), **({BUILDERS[0]: SOURCE} if earlier else {})}
            return Edits([*extended, *earlier], sources) if sources else NotApplicable()
        aliases, understood = factory_names(function)
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
            more = [arg for label, arg in arguments(call).items() if label in (AND, OR)]
            if not all(map(adds_nothing, more)):  # a function over indices: the runtime's masks are of positions
                return self._refuse(site, call)
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


def factory_names(function: cst.FunctionDef) -> tuple[set[str], set[int]]:
    """The mask factories that a method names and its local names for them, and the nodes where those are bound."""
    found = {n for n in names(function.body) if n in BUILDERS}
    nodes: set[int] = set()
    for line in every_statement(function.body) if found else ():
        bound = assignment(line)
        if bound is not None and isinstance(bound[0], cst.Name) and _chooses_builder(bound[1]):
            found.add(bound[0].value)
            nodes |= {id(n) for n in find(bound[1], cst.Name)}
    return found, nodes


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
        if adds_nothing(arg):
            continue
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
    plain = [_spelt_now(e).with_changes(comma=cst.MaybeSentinel.DEFAULT) for e in table.elements]
    return table.with_changes(elements=[*plain, *new])


def _spelt_now(element: cst.BaseDictElement) -> cst.BaseDictElement:
    if isinstance(element, cst.DictElement) and isinstance(element.key, cst.SimpleString):
        if str(element.key.evaluated_value) in OLD_LABELS:
            return element.with_changes(key=cst.SimpleString('"inputs_embeds"'))
    return element
