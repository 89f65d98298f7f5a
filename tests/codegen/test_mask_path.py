"""A mask that is used only where there is none is found, in whatever words."""

import pytest

from codegen.recognize.mask_path import masks_withheld
from codegen.upstream import UpstreamModule

MODULE = """
class Attention(nn.Module):
    def forward(self, scores, attention_mask):
        {lines}
        return scores
"""
ADDED = "scores = scores + attention_mask"


def _found(lines: str) -> list[str]:
    text = MODULE.format(lines=lines.replace("\n", "\n        "))
    return [d.found for d in masks_withheld(UpstreamModule("models/x/modeling_x.py", text), ("Attention",))]


@pytest.mark.parametrize(
    "lines",
    [
        f"if attention_mask is None:\n    {ADDED}",
        f"if (attention_mask is None):\n    {ADDED}",
        f"if not attention_mask is not None:\n    {ADDED}",
        f"if not (attention_mask is not None):\n    {ADDED}",
        f"if not attention_mask:\n    {ADDED}",
        f"if attention_mask is not None:\n    pass\nelse:\n    {ADDED}",
        f"if self.causal and attention_mask is None:\n    {ADDED}",
        f"if self.plain or attention_mask is not None:\n    pass\nelse:\n    {ADDED}",
        f"if attention_mask is not None:\n    pass\nelif self.causal:\n    {ADDED}",
        "scores = scores + attention_mask if attention_mask is None else scores",
        "scores = scores if attention_mask is not None else scores + attention_mask",
    ],
)
def test_a_mask_used_where_there_is_none(lines: str) -> None:
    assert _found(lines) == ["`scores + attention_mask` where there is none"]


@pytest.mark.parametrize(
    "lines",
    [
        ADDED,
        f"if attention_mask is not None:\n    {ADDED}",
        f"if not attention_mask is None:\n    {ADDED}",
        f"if attention_mask is None:\n    pass\nelse:\n    {ADDED}",
        f"if self.causal or attention_mask is None:\n    {ADDED}",
        f"if self.plain and attention_mask is not None:\n    pass\nelse:\n    {ADDED}",
        "scores = scores + attention_mask if attention_mask is not None else scores",
    ],
)
def test_a_mask_used_where_there_may_be_one(lines: str) -> None:
    assert _found(lines) == []


HANDED = """
class Attention(nn.Module):
    def forward(self, states, attention_mask, encoder_hidden_states=None, past_key_values=None):
        keys, values = past_key_values.update(states, states, 0)
        return attend(states, keys, values, attention_mask)

class Layer(nn.Module):
    def __init__(self, config):
        self.attention = Attention()
    def forward(self, states, attention_mask, encoder_hidden_states=None, past_key_values=None):
        states = self.attention(states, attention_mask, past_key_values=past_key_values)
        {lines}
        return states
"""
CALL = "states = self.attention(states, {mask}, encoder_hidden_states, past_key_values)"


@pytest.mark.parametrize(
    ("lines", "withheld"),
    [
        (CALL.format(mask="attention_mask"), False),
        (CALL.format(mask="None"), True),
        (f"if encoder_hidden_states is not None:\n    {CALL.format(mask='None')}", False),
        (f"if self.is_decoder and not encoder_hidden_states is None:\n    {CALL.format(mask='None')}", False),
        (f"if encoder_hidden_states is None:\n    {CALL.format(mask='None')}", True),
        (f"if self.is_decoder or encoder_hidden_states is not None:\n    {CALL.format(mask='None')}", True),
        (f"if encoder_hidden_states is not None:\n    pass\nelse:\n    {CALL.format(mask='None')}", True),
    ],
)
def test_a_mask_withheld(lines: str, withheld: bool) -> None:
    """It may be where an encoder's states are given alone, even if these are handed on."""
    text = HANDED.format(lines=lines.replace("\n", "\n        "))
    found = masks_withheld(UpstreamModule("models/x/modeling_x.py", text), ("Layer", "Attention"))
    assert [d.found for d in found] == (["`" + CALL.format(mask="None").split(" = ")[1] + "`"] if withheld else [])
