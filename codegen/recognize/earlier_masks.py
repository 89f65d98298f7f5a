"""Causal masks that a model makes as earlier releases did, without upstream's mask factories."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import libcst as cst

from codegen.recognize.calls import bound_to
from codegen.syntax import find, parameters, self_attribute
from codegen.upstream import Method, UpstreamModule

HELPER, HELPERS = "_prepare_4d_causal_attention_mask", "modeling_attn_mask_utils"
GIVEN = ("attention_mask", "sequence_length", "target_length", "dtype", "cache_position", "batch_size")
# A method that makes a mask from a padding mask, as every file that has it spells it: hidden is what lies
# behind a token's counted position, and padding.
METHOD = (
    "if attention_mask is not None and attention_mask.dim() == 4:\n"
    "    causal_mask = attention_mask\n"
    "else:\n"
    "    min_dtype = torch.finfo(dtype).min\n"
    "    causal_mask = torch.full((sequence_length, target_length), fill_value=min_dtype, dtype=dtype,"
    " device=cache_position.device)\n"
    "    if sequence_length != 1:\n"
    "        causal_mask = torch.triu(causal_mask, diagonal=1)\n"
    "    causal_mask *= torch.arange(target_length, device=cache_position.device) > cache_position.reshape(-1, 1)\n"
    "    causal_mask = causal_mask[None, None, :, :].expand(batch_size, 1, -1, -1)\n"
    "    if attention_mask is not None:\n"
    "        causal_mask = causal_mask.clone()\n"
    "        mask_length = attention_mask.shape[-1]\n"
    "        padding_mask = causal_mask[:, :, :, :mask_length] +"
    " attention_mask[:, None, None, :].to(causal_mask.device)\n"
    "        padding_mask = padding_mask == 0\n"
    "        causal_mask[:, :, :, :mask_length] ="
    " causal_mask[:, :, :, :mask_length].masked_fill(padding_mask, min_dtype)",
    "return causal_mask",
)


@dataclass(frozen=True)
class EarlierMask:
    """A call that makes a causal mask, the padding mask that it takes, and a tensor of the mask's dtype and device."""

    call: cst.Call
    mask: cst.BaseExpression
    embeds: cst.BaseExpression
    positions: cst.BaseExpression | None = None  # the counted positions that it is given, if any


def makes_masks(module: UpstreamModule, method: Method) -> bool:
    """Whether a method is the one that every file spells alike."""
    if not set(GIVEN) <= set(parameters(method.node)):
        return False
    return tuple(map(ast.unparse, module.body(f"{method.owner}.{method.name}"))) == METHOD


def earlier_masks(module: UpstreamModule, cls: str, function: cst.FunctionDef) -> list[EarlierMask]:
    """The calls in a method of ``cls`` that make a causal mask from a padding mask: of the helper that earlier releases
    import, or of a method that does the same."""
    result: list[EarlierMask] = []
    imported = HELPER in module.imports and module.imports[HELPER].module.endswith(f".{HELPERS}")
    if not imported and "target_length" not in module.text:
        return result  # neither is anywhere in the file
    for call in find(function.body, cst.Call):
        if imported and isinstance(call.func, cst.Name) and call.func.value == HELPER:
            plain = [arg.value for arg in call.args if arg.keyword is None and not arg.star]
            if len(plain) == len(call.args) == 4:  # a fifth is a window
                result.append(EarlierMask(call, plain[0], plain[2]))
            continue
        name = self_attribute(call.func)
        method = module.method(cls, name) if name is not None else None
        if method is not None and makes_masks(module, method):
            given = bound_to(call, method.node)
            embeds = _measured(given["batch_size"].value) if set(GIVEN) <= given.keys() else None
            if embeds is not None:
                mask, positions = given["attention_mask"].value, given["cache_position"].value
                result.append(EarlierMask(call, mask, embeds, positions))
    return result


def masks_of_calls(module: UpstreamModule, cls: str, function: cst.FunctionDef) -> list[EarlierMask]:
    """As `earlier_masks`, and the calls of own methods that choose such a mask and hand it back."""
    result = earlier_masks(module, cls, function)
    for call in find(function.body, cst.Call) if "target_length" in module.text else ():
        name = self_attribute(call.func)
        method = module.method(cls, name) if name is not None else None
        inner = earlier_masks(module, cls, method.node) if method is not None else []
        if method is None or len(inner) != 1:
            continue
        given = bound_to(call, method.node)
        labels = [v.value if isinstance(v, cst.Name) else "" for v in (inner[0].mask, inner[0].embeds)]
        if set(labels) <= given.keys():
            mask, embeds = (given[label].value for label in labels)
            result.append(EarlierMask(call, mask, embeds))
    return result


def _measured(size: cst.BaseExpression) -> cst.BaseExpression | None:
    """``x`` of ``x.shape[0]``."""
    if isinstance(size, cst.Subscript) and isinstance(size.value, cst.Attribute) and size.value.attr.value == "shape":
        return size.value.value
    return None
