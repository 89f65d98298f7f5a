"""``rmpad/mask-builder``: masks that keep packed sequences apart take the place of upstream's."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.earlier_masks import EarlierMask, masks_of_calls
from codegen.recognize.mask_factories import AND, BUILDERS, adds_nothing
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import arguments, code, expression, find, names, parameters, walk, without_keywords

BY_SEGMENT, TO_ADD = "runtime.training.masks", "runtime.training.dense_masks"
IDS, MASK = "input_ids", "attention_mask"
CHOICE = "packed_mask_or"  # for masks that no factory makes


class MaskBuilder:
    id = "rmpad/mask-builder"
    roles = frozenset({Role.HEAD, Role.WRAPPER, Role.BACKBONE, Role.LAYER})
    summary = "builds masks from where the packed sequences lie, where attention_mask says so"
    why = "a packed row holds many sequences: no token may attend to another sequence's"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask=None):
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask, and_mask_function=lambda *args: torch.tensor(True, dtype=torch.bool))
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask=None):
        return create_causal_mask(config=self.config, inputs_embeds=x, attention_mask=attention_mask)
""",
        ),
        Case(
            """
from ...modeling_attn_mask_utils import _prepare_4d_causal_attention_mask

class CaseModel:
    def forward(self, input_ids, attention_mask=None, past_key_values=None):
        x = self.embed(input_ids)
        seen = past_key_values.get_seq_length()
        attention_mask = _prepare_4d_causal_attention_mask(attention_mask, x.shape[:2], x, seen)
        return self.layers(x, attention_mask)
""",
            "CaseModel.forward",
            """
    def forward(self, input_ids, attention_mask=None, past_key_values=None):
        x = self.embed(input_ids)
        seen = past_key_values.get_seq_length()
        attention_mask = packed_mask_or(attention_mask, x, lambda: _prepare_4d_causal_attention_mask(attention_mask, x.shape[:2], x, seen))
        return self.layers(x, attention_mask)
""",
        ),
        Case(
            """
from ...modeling_attn_mask_utils import _prepare_4d_causal_attention_mask

class CaseModel:
    def forward(self, input_ids, attention_mask=None, past_key_values=None):
        x = self.embed(input_ids)
        return self.layers(x, _prepare_4d_causal_attention_mask(attention_mask, x.shape[:2], x, 0, 4))
""",
            "CaseModel.forward",
        ),
        Case("class CaseModel:\n    def forward(self, x):\n        return x\n", "CaseModel.forward"),
    )

    def match(self, site: Site) -> Match:
        used = sorted({n for n in names(site.function.body) if n in BUILDERS})
        edits = []
        for made in _outside(site) if IDS in parameters(site.function) else ():
            choice = expression(
                f"{CHOICE}(MASK, EMBEDS, lambda: CALL)", MASK=made.mask, EMBEDS=made.embeds, CALL=made.call
            )
            edits.append(Edit(made.call, choice))
            used.append(CHOICE)
        if not used:
            return NotApplicable()
        for call in find(site.function.body, cst.Call):
            extra = arguments(call).get(AND) if isinstance(call.func, cst.Name) and call.func.value in used else None
            if extra is not None and adds_nothing(extra):
                edits.append(Edit(call, without_keywords(call, (AND,))))
        return Edits(edits, dict.fromkeys(used, TO_ADD if site.family.adds_masks else BY_SEGMENT))


def _outside(site: Site) -> list[EarlierMask]:
    """What makes a causal mask of the padding mask here without a factory, where no packing is asked for first."""
    chosen = {
        id(node)
        for call in find(site.function.body, cst.Call)
        if isinstance(call.func, cst.Name) and call.func.value == CHOICE
        for node in walk(call)
    }
    made = masks_of_calls(site.module, site.cls, site.function)
    return [m for m in made if code(m.mask) == MASK and id(m.call) not in chosen]
