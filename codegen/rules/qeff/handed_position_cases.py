"""Cases of ``qeff/position-default`` in which counted positions are handed down from a model to its attention."""

from __future__ import annotations

from codegen.rules.base import Case

FAMILY = """
class CaseAttention:
    def forward(self, x, past_key_values=None, cache_position=None):
        cache_kwargs = {"cache_position": cache_position}
        return past_key_values.update(x, x, self.layer_idx, cache_kwargs)

class CaseLayer:
    def __init__(self, config):
        self.attn = CaseAttention()
    def forward(self, x, past_key_values=None, cache_position=None, **kwargs):
        return self.attn(x, past_key_values=past_key_values, cache_position=cache_position)

class CaseModel:
    def __init__(self, config):
        self.layers = nn.ModuleList([CaseLayer()])
    def forward(self, x, mask=None, position_ids=None, past_key_values=None, cache_position=None):
"""
COUNTED = """        if cache_position is None:
            seen = past_key_values.get_seq_length()
            cache_position = torch.arange(x.shape[1]) + seen
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
"""
HANDED_ON = (
    Case(
        FAMILY
        + COUNTED
        + """        mask_kwargs = {"config": self.config, "cache_position": cache_position}
        masks = create_sliding_window_causal_mask(**mask_kwargs)
        mask = create_causal_mask(config=self.config, cache_position=cache_position, position_ids=position_ids)
        for layer in self.layers:
            x = layer(x, past_key_values, cache_position, mask=mask)
        return x
""",
        "CaseModel.forward",
        """
    def forward(self, x, mask=None, position_ids=None, past_key_values=None, cache_position=None):
        mask_kwargs = {"config": self.config}
        masks = create_sliding_window_causal_mask(**mask_kwargs)
        mask = create_causal_mask(config=self.config, position_ids=position_ids)
        for layer in self.layers:
            x = layer(x, past_key_values, None, mask=mask)
        return x
""",
    ),
    Case(
        FAMILY
        + COUNTED
        + """        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
        return x
""",
        "CaseLayer.forward",
        """
    def forward(self, x, past_key_values=None, cache_position=None, **kwargs):
        return self.attn(x, past_key_values=past_key_values)
""",
    ),
    Case(
        FAMILY
        + COUNTED
        + """        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
        return x
""",
        "CaseAttention.forward",
    ),
    Case(
        FAMILY
        + """        seen = 0
        if cache_position is not None:
            seen = cache_position[0]
        elif past_key_values is not None:
            seen = past_key_values.get_seq_length()
        if cache_position is None:
            cache_position = torch.arange(x.shape[1]) + seen
        if position_ids is None:
            position_ids = cache_position.unsqueeze(0)
        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
        return x
""",
        "CaseModel.forward",
        """
    def forward(self, x, mask=None, position_ids=None, past_key_values=None, cache_position=None):
        seen = 0
        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values)
        return x
""",
    ),
    Case(
        FAMILY
        + COUNTED
        + """        keys = cache_position[-1] + 1
        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
        return x[:keys]
""",
        "CaseModel.forward",
        refuses="`keys = cache_position[-1] + 1`",
    ),
    Case(
        FAMILY
        + COUNTED
        + """        if cache_position[0] > 0:
            x = x * 2
        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
        return x
""",
        "CaseModel.forward",
        refuses="`cache_position[0] > 0`",
    ),
    Case(
        FAMILY
        + COUNTED
        + """        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
            x = layer(x, past_key_values=past_key_values, cache_position=position_ids)
        return x
""",
        "CaseModel.forward",
        refuses="cache_position=position_ids",
    ),
    Case(
        """
class CaseEmbedding(nn.Embedding):
    def forward(self, x, seen=0, position_ids=None):
        if position_ids is None:
            position_ids = torch.arange(seen, seen + x.shape[1])
        else:
            position_ids = position_ids.unsqueeze(0)
        return super().forward(position_ids)

class CaseAttention:
    def forward(self, x, past_key_values=None, cache_position=None):
        cache_kwargs = {"cache_position": cache_position}
        return past_key_values.update(x, x, self.layer_idx, cache_kwargs)

class CaseLayer:
    def __init__(self, config):
        self.attn = CaseAttention()
    def forward(self, x, past_key_values=None, cache_position=None, **kwargs):
        return self.attn(x, past_key_values=past_key_values, cache_position=cache_position)

class CaseModel:
    def __init__(self, config):
        self.embed = CaseEmbedding()
        self.layers = nn.ModuleList([CaseLayer()])
    def forward(self, x, mask=None, position_ids=None, past_key_values=None, cache_position=None):
"""
        + COUNTED
        + """        x = x + self.embed(x, position_ids=cache_position)
        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values, cache_position=cache_position)
        return x
""",
        "CaseModel.forward",
        """
    def forward(self, x, mask=None, position_ids=None, past_key_values=None, cache_position=None):
        x = x + self.embed(x, position_ids=position_ids)
        for layer in self.layers:
            x = layer(x, past_key_values=past_key_values)
        return x
""",
    ),
)
