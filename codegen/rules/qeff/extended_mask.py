"""Masks that a model makes by ``self.get_extended_attention_mask``; part of ``qeff/mask-builder``."""

from __future__ import annotations

import libcst as cst

from codegen.rules.base import Edit
from codegen.syntax import code, expression, find

METHOD = "self.get_extended_attention_mask"
SOURCES = {"create_decoder_mask": "runtime.qeff.decoder_masks", "QEffDynamicCache": "runtime.qeff.cache"}
CALL = """create_decoder_mask(
    self.config, MASK, past_key_values=QEffDynamicCache.from_legacy_cache(past_key_values),
    position_ids=position_ids, comp_ctx_lengths=comp_ctx_lengths
)"""


def extended_masks(function: cst.FunctionDef) -> list[Edit]:
    """``self.get_extended_attention_mask(attention_mask, input_shape)`` makes a causal mask where ``config.is_decoder``;
    the rows of the cache may still be the caller's plain pairs there."""
    return [
        Edit(call, expression(CALL, MASK=call.args[0].value))
        for call in find(function.body, cst.Call)
        if code(call.func) == METHOD and call.args and call.args[0].keyword is None
    ]
