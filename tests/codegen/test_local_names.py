"""What a local is called decides nothing, nor which way round a test is put: both are known by what they mean."""

import pytest

from codegen.recognize.cache_use import unknown_uses
from codegen.upstream import UpstreamModule

PATH = "models/case/modeling_case.py"
CROSSING = """
class CaseAttention:
    def forward(self, x, past_key_values=None, encoder_hidden_states=None):
        crosses = encoder_hidden_states is not None
        {line}
        if crosses:
            x = past_key_values.cross_attention_cache
        return x
"""


@pytest.mark.parametrize(("line", "unknown"), [("pass", 0), ("crosses: bool = self.crosses", 1), ("crosses |= y", 1)])
def test_branches_for_an_encoder_are_known_by_what_the_flag_is_bound_to(line: str, unknown: int) -> None:
    module = UpstreamModule(PATH, CROSSING.format(line=line))
    assert len(unknown_uses(module, ("CaseAttention",))) == unknown


CACHED = """
class CaseAttention:
    def forward(self, x, past_key_values=None):
        if {test}:
            x = past_key_values.{then}
        else:
            x = past_key_values.{otherwise}
        return x
"""
ENCODER_CACHE = "isinstance(past_key_values, EncoderDecoderCache)"


@pytest.mark.parametrize(
    ("test", "runs"),
    [
        (ENCODER_CACHE, {"otherwise"}),
        (f"not {ENCODER_CACHE}", {"then"}),
        (f"x and {ENCODER_CACHE}", {"otherwise"}),
        (f"x or {ENCODER_CACHE}", {"then", "otherwise"}),
        (f"x or not {ENCODER_CACHE}", {"then"}),
        (f"not (self.is_cross_attention or {ENCODER_CACHE})", {"then"}),
        ("isinstance(past_key_values, (EncoderDecoderCache, DynamicCache))", {"then", "otherwise"}),
    ],
)
def test_which_side_runs_without_an_encoder(test: str, runs: set[str]) -> None:
    for side in ("then", "otherwise"):
        names = {"then": "get_seq_length()", "otherwise": "get_seq_length()"} | {side: "states"}
        module = UpstreamModule(PATH, CACHED.format(test=test, **names))
        assert bool(unknown_uses(module, ("CaseAttention",))) == (side in runs), side
