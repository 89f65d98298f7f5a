"""``rmpad/mask-builder``: masks that keep packed sequences apart take the place of upstream's."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import arguments, code, find, names, without_keywords

BUILDERS = ("create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask")
BY_SEGMENT, TO_ADD = "runtime.training.masks", "runtime.training.dense_masks"
AND = "and_mask_function"
CONSTANT_TRUE = "lambda *args: torch.tensor(True, dtype=torch.bool)"


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
        Case("class CaseModel:\n    def forward(self, x):\n        return x\n", "CaseModel.forward"),
    )

    def match(self, site: Site) -> Match:
        used = sorted({n for n in names(site.function.body) if n in BUILDERS})
        if not used:
            return NotApplicable()
        edits = []
        for call in find(site.function.body, cst.Call):
            extra = arguments(call).get(AND) if isinstance(call.func, cst.Name) and call.func.value in used else None
            if extra is not None and code(extra.value) == CONSTANT_TRUE:
                # "and True" is upstream's way to have the mask written out; a tensor to add always is
                edits.append(Edit(call, without_keywords(call, (AND,))))
        return Edits(edits, dict.fromkeys(used, TO_ADD if site.family.adds_masks else BY_SEGMENT))
