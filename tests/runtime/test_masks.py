"""Position-derived masks against upstream's eager masks; eager attention against upstream's; the last token."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers.masking_utils as upstream
from onnx_harness import Session, export
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama import modeling_llama

from runtime.qeff import attention, masks
from runtime.qeff.cache import QEffDynamicCache
from runtime.qeff.logits import last_token

BUILDERS = ["create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask"]
PAD = -1


def config(size: int = 4) -> LlamaConfig:
    """`size` positions per window and per chunk."""
    made = LlamaConfig(hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    made.sliding_window = made.attention_chunk_size = size
    made._attn_implementation = "eager"
    return made


def upstream_hidden(builder: str, settings: LlamaConfig, seen: int, tokens: int) -> Tensor:
    """True where upstream's added mask hides a key, `[1, 1, tokens, seen + tokens]`."""
    cache = DynamicCache()
    if seen:
        cache.update(torch.zeros(1, 1, seen, 8), torch.zeros(1, 1, seen, 8), 0)
    mask = getattr(upstream, builder)(
        config=settings,
        inputs_embeds=torch.zeros(1, tokens, 16),
        attention_mask=None,
        past_key_values=cache,
        position_ids=torch.arange(seen, seen + tokens).unsqueeze(0),
    )
    assert set(mask.unique().tolist()) <= {0.0, torch.finfo(torch.float32).min}
    return mask < 0


def ours(builder: str, settings: Any, positions: list[list[int]], slots: int, **more: Any) -> Tensor:
    mask = getattr(masks, builder)(
        config=settings,
        inputs_embeds=torch.zeros(len(positions), len(positions[0]), 16),
        attention_mask=None,
        past_key_values=QEffDynamicCache(ctx_len=slots),
        position_ids=torch.tensor(positions),
        **more,
    )
    assert mask.dtype == torch.bool
    return mask


@pytest.mark.parametrize("size", [1, 3, 4, 40], ids="size-{}".format)
@pytest.mark.parametrize("builder", BUILDERS)
def test_agrees_with_upstream(builder: str, size: int) -> None:
    """Prefill, a second chunk and decoding; windows shorter and longer than the prompt."""
    settings, slots = config(size), 16
    for seen, tokens in ((0, 7), (0, 1), (5, 4), (9, 1), (12, 4)):
        expected = upstream_hidden(builder, settings, seen, tokens)
        found = ours(builder, settings, [list(range(seen, seen + tokens))], slots)
        assert found.shape == (1, 1, tokens, slots)
        assert torch.equal(found[..., : seen + tokens], expected)
        assert found[..., seen + tokens :].all(), "slots that are not written yet are hidden"


@pytest.mark.parametrize("builder", BUILDERS)
def test_rows_are_independent_and_pads_see_nothing(builder: str) -> None:
    settings, rows = config(3), [[4, 5, PAD, PAD], [PAD] * 4, [0, 1, 2, 3]]
    found = ours(builder, settings, rows, 9)
    assert found.shape == (3, 1, 4, 9)
    for row, positions in enumerate(rows):
        assert torch.equal(found[row : row + 1], ours(builder, settings, [positions], 9))
        for token, position in enumerate(positions):
            if position == PAD:
                assert found[row, 0, token].all()
            else:
                assert not found[row, 0, token, position], "a token sees itself"


@pytest.mark.parametrize("builder", BUILDERS)
def test_compute_context_length_is_the_width(builder: str) -> None:
    whole = ours(builder, config(), [[2, 3, PAD]], 12)
    cut = ours(builder, config(), [[2, 3, PAD]], 12, comp_ctx_lengths=torch.zeros(5, dtype=torch.int64))
    assert torch.equal(cut, whole[..., :5])


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    "change, message",
    [
        ({"attention_mask": torch.ones(1, 2)}, "position_ids == -1"),
        ({"or_mask_function": max}, "or_mask_function"),
        ({"and_mask_function": max}, "and_mask_function"),
        ({"position_ids": None}, "position_ids"),
        ({"position_ids": torch.zeros(3, 1, 2, dtype=torch.int64)}, "3 dimensions"),
        ({"past_key_values": None}, "past_key_values"),
        ({"config": SimpleNamespace(is_causal=False, sliding_window=2, attention_chunk_size=2)}, "is_causal"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_positions_cannot_express_is_an_error(builder: str, change: dict[str, Any], message: str) -> None:
    arguments = {
        "config": config(),
        "inputs_embeds": torch.zeros(1, 2, 16),
        "attention_mask": None,
        "past_key_values": QEffDynamicCache(ctx_len=4),
        "position_ids": torch.tensor([[0, 1]]),
    }
    with pytest.raises(ValueError, match=message):
        getattr(masks, builder)(**{**arguments, **change})


@pytest.mark.parametrize("builder, field", [(BUILDERS[1], "sliding_window"), (BUILDERS[2], "attention_chunk_size")])
def test_unset_window_is_an_error(builder: str, field: str) -> None:
    settings = config()
    setattr(settings, field, None)
    with pytest.raises(ValueError, match=field):
        ours(builder, settings, [[0]], 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_rows_stay_finite(dtype: torch.dtype) -> None:
    scores = torch.randn(2, 3, 4, 5).to(dtype)
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[0, :, 1, 2:], mask[1, :, 3] = True, True
    weights = masks.mask_scores(scores, mask).softmax(-1)
    assert weights.dtype == dtype and torch.isfinite(weights).all()
    assert not weights[0, :, 1, 2:].any()
    assert weights[1, :, 3].unique().numel() == 1, "a row that is hidden as a whole becomes uniform"
    assert torch.equal(masks.mask_scores(scores, mask)[0, :, 0], scores[0, :, 0])


class Attention(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 3])
def test_eager_attention_is_upstreams(groups: int, dtype: torch.dtype) -> None:
    module = Attention(groups).eval()
    query, key, value = (torch.randn(2, heads, n, 6).to(dtype) for heads, n in ((2 * groups, 3), (2, 5), (2, 5)))
    value = torch.cat([value, value[..., :2]], dim=-1)
    mask = ours("create_causal_mask", config(), [[2, 3, 4], [0, 1, 2]], 5)
    added = torch.zeros(mask.shape, dtype=dtype).masked_fill(mask, torch.finfo(dtype).min)
    expected = modeling_llama.eager_attention_forward(module, query, key, value, added, 0.4)
    found = attention.eager_attention_forward(module, query, key, value, mask, 0.4)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-2)
    assert torch.equal(attention.repeat_kv(key, groups), modeling_llama.repeat_kv(key, groups))


def test_eager_attention_refuses_an_added_mask() -> None:
    states = torch.randn(1, 2, 3, 4)
    with pytest.raises(TypeError, match="bool"):
        attention.eager_attention_forward(Attention(1), states, states, states, torch.zeros(1, 1, 3, 3), 1.0)


def test_last_token_is_the_furthest() -> None:
    hidden = torch.randn(4, 3, 6)
    positions = torch.tensor([[0, 1, 2], [7, 8, PAD], [3, PAD, PAD], [PAD, PAD, PAD]])
    found = last_token(hidden, positions)
    assert torch.equal(found[:, 0], torch.stack([hidden[0, 2], hidden[1, 1], hidden[2, 0], hidden[3, 0]]))


class Masked(nn.Module):
    """All masks, attention and the last token over one buffer."""

    def __init__(self, settings: LlamaConfig) -> None:
        super().__init__()
        self.settings, self.attention = settings, Attention(2)

    def forward(self, query: Tensor, position_ids: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        cache = QEffDynamicCache.from_legacy_cache([(key, value)])
        made = [
            getattr(masks, builder)(
                self.settings, query, None, past_key_values=cache, position_ids=position_ids, comp_ctx_lengths=None
            )
            for builder in BUILDERS
        ]
        output, _ = attention.eager_attention_forward(self.attention, query, key, value, made[1], 0.5)
        return *made, last_token(output.flatten(2), position_ids)


def test_one_graph_serves_other_sizes() -> None:
    module = Masked(config(3))
    axes = {
        "query": {0: "batch", 2: "seq"},
        "position_ids": {0: "batch", 1: "seq"},
        "key": {0: "batch", 2: "ctx"},
        "value": {0: "batch", 2: "ctx"},
    }
    example = (torch.randn(2, 6, 4, 5), torch.arange(4).repeat(2, 1), torch.randn(2, 3, 9, 5), torch.randn(2, 3, 9, 7))
    session = Session(export(module, example, list(axes), [*BUILDERS, "last"], axes))
    for slots, rows in ((6, [[4, 5, PAD, PAD]]), (11, [[9, 10], [PAD, PAD], [0, 1]]), (3, [[2]])):
        query = torch.randn(len(rows), 6, len(rows[0]), 5)
        key, value = torch.randn(len(rows), 3, slots, 5), torch.randn(len(rows), 3, slots, 7)
        tensors = {"query": query, "position_ids": torch.tensor(rows), "key": key, "value": value}
        for found, expected in zip(session(**tensors), module.eval()(*tensors.values()), strict=True):
            assert found.shape == expected.shape
            if expected.dtype == torch.bool:
                assert torch.equal(found, expected)
            else:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
