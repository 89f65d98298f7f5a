"""What a local is called decides nothing: it is known by what it is bound to."""

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
