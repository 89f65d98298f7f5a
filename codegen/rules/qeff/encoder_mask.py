"""``qeff/encoder-mask``: no mask over an encoder's output is built, and none that lets tokens look ahead."""

from __future__ import annotations

import libcst as cst

from codegen.ir import Role
from codegen.recognize.mask_factories import BUILDERS
from codegen.rules.base import Case, Edit, Edits, Match, NotApplicable, Site
from codegen.syntax import arguments, assignment, code, every_statement, find, names, parameters, walk

BUILDER = "create_bidirectional_mask"
ENCODER = "encoder_hidden_states"
ENCODER_MASK = "encoder_attention_mask"
WARNING = "self.warn_if_padding_and_no_attention_mask"


class EncoderMask:
    id = "qeff/encoder-mask"
    roles = frozenset({Role.WRAPPER, Role.BACKBONE})
    summary = "drops the mask over an encoder's output, refuses two-way attention, drops warnings about masks"
    why = "a causal LM alone has no encoder to attend to, and what a token may not see yet cannot be in its cache"
    cases = (
        Case(
            """
class CaseModel:
    def forward(self, x, encoder_hidden_states=None, encoder_attention_mask=None):
        encoder_attention_mask = create_bidirectional_mask(
            attention_mask=encoder_attention_mask, encoder_hidden_states=encoder_hidden_states
        )
        return self.layers(x, encoder_attention_mask)
""",
            "CaseModel.forward",
            """
    def forward(self, x, encoder_hidden_states=None, encoder_attention_mask=None):
        return self.layers(x, encoder_attention_mask)
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        if self.config.is_decoder:
            attention_mask = f(x)
        else:
            attention_mask = create_bidirectional_mask(config=self.config, attention_mask=attention_mask)
        return attention_mask
""",
            "CaseModel.forward",
            """
    def forward(self, x, attention_mask=None):
        if self.config.is_decoder:
            attention_mask = f(x)
        else:
            attention_mask = no_bidirectional_mask(config=self.config, attention_mask=attention_mask)
        return attention_mask
""",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, attention_mask=None):
        attention_mask = create_bidirectional_mask(config=self.config, attention_mask=attention_mask)
        return self.layers(x, attention_mask)
""",
            "CaseModel.forward",
            refuses="`create_bidirectional_mask` for every configuration",
        ),
        Case(
            """
class CaseModel:
    def forward(self, x, encoder_hidden_states=None, encoder_attention_mask=None):
        if encoder_hidden_states is not None:
            encoder_attention_mask = create_bidirectional_mask(encoder_hidden_states=encoder_hidden_states)
        return self.layers(x, encoder_attention_mask)
""",
            "CaseModel.forward",
        ),
    )

    def match(self, site: Site) -> Match:
        function = site.function
        edits: list[Edit] = []
        brought: dict[str, str] = {}
        for line in function.body.body:
            if isinstance(line, cst.SimpleStatementLine) and _builds_encoder_mask(function, line):
                edits.append(Edit(line, cst.RemoveFromParent()))
        gone = {id(n) for edit in edits for n in walk(edit.node)}
        looking_ahead = _always_looks_ahead(function, gone)
        if looking_ahead is not None:
            return site.refusal(
                self.id,
                looking_ahead,
                "a decoder's mask that hides later tokens, or one that lets tokens look ahead only where it is no decoder",
                f"`{code(looking_ahead.func)}` for every configuration, and no causal mask beside it",
                "upstream's decoder looks ahead here: a token's keys and values would change with every later token, so "
                "no cache can hold them; a causal mask is needed upstream",
            )
        for call in find(function.body, cst.Call):
            if id(call) not in gone and code(call.func) == BUILDER and ENCODER not in arguments(call):
                edits.append(Edit(call.func, cst.Name("no_bidirectional_mask")))
                brought["no_bidirectional_mask"] = "runtime.qeff.decoder_masks"
        for line in every_statement(function.body):
            small = line.body[0] if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 else None
            if isinstance(small, cst.Expr) and isinstance(small.value, cst.Call) and code(small.value.func) == WARNING:
                edits.append(Edit(line, cst.RemoveFromParent()))
        return Edits(edits, brought) if edits else NotApplicable()


def _always_looks_ahead(function: cst.FunctionDef, gone: set[int]) -> cst.Call | None:
    """The call that makes a two-way mask whatever the configuration, in a method that makes no causal one."""
    if BUILDER not in names(function.body) or names(function.body) & set(BUILDERS):
        return None
    for line in function.body.body:
        for call in find(line, cst.Call) if isinstance(line, cst.SimpleStatementLine) else ():
            if id(call) not in gone and code(call.func) == BUILDER and ENCODER not in arguments(call):
                return call
    return None


def _builds_encoder_mask(function: cst.FunctionDef, line: cst.SimpleStatementLine) -> bool:
    """``encoder_attention_mask = create_bidirectional_mask(..., encoder_hidden_states=encoder_hidden_states)``."""
    bound = assignment(line)
    if bound is None or code(bound[0]) != ENCODER_MASK or ENCODER_MASK not in parameters(function):
        return False
    return isinstance(bound[1], cst.Call) and code(bound[1].func) == BUILDER and ENCODER in names(bound[1])
