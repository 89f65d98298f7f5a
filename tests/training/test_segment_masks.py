"""Masks of packed rows against upstream's masks of every segment alone, key by key."""

from typing import Any

import pytest
import torch
import transformers.masking_utils as upstream
from packed_reference import counted_transfers
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

from runtime.training import dense_masks, masks
from runtime.training.attention import segment_attention
from runtime.training.masks import SegmentMask
from runtime.training.packing import Packing

BUILDERS = ["create_causal_mask", "create_sliding_window_causal_mask", "create_chunked_causal_mask"]
LENGTHS = (5, 1, 9, 4, 4, 2)


def config(size: int | None, implementation: str = "eager", **more: Any) -> LlamaConfig:
    """`size` tokens per window and per chunk."""
    made = LlamaConfig(hidden_size=16, num_attention_heads=2, num_key_value_heads=1, **more)
    made.sliding_window = made.attention_chunk_size = size
    made._attn_implementation = implementation
    return made


def seen_alone(builder: str, settings: LlamaConfig, length: int) -> Tensor:
    """bool `[length, length]`: where upstream's mask of one sequence lets a query attend."""
    mask = getattr(upstream, builder)(
        config=settings,
        inputs_embeds=torch.zeros(1, length, 16),
        attention_mask=None,
        past_key_values=None,
        position_ids=torch.arange(length).unsqueeze(0),
    )
    return (mask == 0)[0, 0]


def seen_packed(builder: str, settings: LlamaConfig, lengths: tuple[int, ...]) -> Tensor:
    """bool `[T, T]`, block by block from upstream's masks."""
    return torch.block_diag(*(seen_alone(builder, settings, length).int() for length in lengths)).bool()


def built(module: Any, builder: str, settings: Any, packing: Any, **more: Any) -> Any:
    return getattr(module, builder)(
        config=settings,
        inputs_embeds=torch.zeros(1, sum(LENGTHS), 16),
        attention_mask=packing,
        past_key_values=None,
        position_ids=torch.zeros(1, sum(LENGTHS), dtype=torch.int64),
        **more,
    )


def seen_by_bands(mask: SegmentMask) -> Tensor:
    """bool `[T, T]` put together from what the back ends read: stretches and the band inside them."""
    return torch.block_diag(*(mask.band(length, 0, torch.device("cpu")).int() for length in mask.lengths)).bool()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 40], ids="size-{}".format)
@pytest.mark.parametrize("builder", BUILDERS)
def test_segments_see_what_they_see_alone(builder: str, size: int) -> None:
    settings = config(size)
    expected = seen_packed(builder, settings, LENGTHS)
    packing = Packing.of_lengths(LENGTHS)
    mask = built(masks, builder, settings, packing)
    assert isinstance(mask, SegmentMask) and mask.packing is packing
    assert torch.equal(seen_by_bands(mask), expected)

    dense = built(dense_masks, builder, settings, packing)
    assert dense.shape == (1, 1, 25, 25) and dense.dtype == torch.float32
    assert torch.equal(dense[0, 0] == 0, expected)
    assert torch.equal(dense[0, 0] == torch.finfo(torch.float32).min, ~expected)


@pytest.mark.parametrize("window", [1, 2, 3, 7])
def test_a_window_counts_the_query_itself(window: int) -> None:
    """w keys at most, as upstream's overlay; w - 1 or w + 1 is the mistake that short sequences hide."""
    mask = Packing.of_lengths([12]).mask(window=window)
    seen = mask.band(12, 0, torch.device("cpu"))
    assert seen.sum(1).tolist() == [min(place + 1, window) for place in range(12)]
    overlay = upstream.sliding_window_causal_mask_function(window)
    places = torch.arange(12)
    assert torch.equal(seen, overlay(0, 0, places[:, None], places[None, :]))


@pytest.mark.parametrize("window", [1, 3, 8])
@pytest.mark.parametrize(("queries", "behind"), [(1, 0), (4, 0), (4, 2), (5, 7), (8, 8)])
def test_the_band_of_a_block_is_a_part_of_the_whole(window: int, queries: int, behind: int) -> None:
    mask = Packing.of_lengths([40]).mask(window=window)
    whole = mask.band(40, 0, torch.device("cpu"))
    block = mask.band(queries, behind, torch.device("cpu"))
    for first in (0, 11):
        rows = whole[first + behind : first + behind + queries, first : first + behind + queries]
        assert torch.equal(block, rows)


def test_chunks_are_counted_inside_segments() -> None:
    mask = Packing.of_lengths([5, 1, 8]).mask(chunk=4)
    assert mask.lengths == (4, 1, 1, 4, 4) and mask.max_seqlen == 4
    assert mask.cu_seqlens.tolist() == [0, 4, 5, 6, 10, 14] and mask.cu_seqlens.dtype == torch.int32
    assert mask.runs == ((4, 1), (1, 2), (4, 2))


def test_a_chunk_as_long_as_the_segments_changes_nothing() -> None:
    packing = Packing.of_lengths([5, 1, 8])
    assert packing.mask(chunk=8).cu_seqlens is packing.cu_seqlens


def test_layers_share_a_mask() -> None:
    packing = Packing.of_lengths(LENGTHS)
    first = built(masks, BUILDERS[1], config(3), packing)
    assert built(masks, BUILDERS[1], config(3), packing) is first
    assert built(masks, BUILDERS[1], config(4), packing) is not first
    assert first.band(5, 0, torch.device("cpu")).data_ptr() == first.band(7, 0, torch.device("cpu")).data_ptr()


def test_the_dtype_of_a_dense_mask_is_the_embeddings() -> None:
    dense = dense_masks.create_causal_mask(
        config(None), torch.zeros(1, 3, 4, dtype=torch.bfloat16), Packing.of_lengths([3])
    )
    assert dense.dtype == torch.bfloat16 and dense.min() == torch.finfo(torch.bfloat16).min
    with pytest.raises(ValueError, match="inputs_embeds, which is None"):
        dense_masks.create_causal_mask(config(None), None, Packing.of_lengths([3]))


@pytest.mark.parametrize("module", [masks, dense_masks], ids=["masks", "dense_masks"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("builder", BUILDERS)
def test_without_a_packing_the_mask_is_upstreams(module: Any, builder: str, implementation: str) -> None:
    settings = config(8, implementation)
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 2, 8), torch.zeros(2, 1, 2, 8), 0)
    for padding, past in ((None, None), (torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]), None), (None, cache)):
        arguments: dict[str, Any] = {
            "config": settings,
            "inputs_embeds": torch.zeros(2, 4, 16),
            "attention_mask": padding,
            "past_key_values": past,
            "position_ids": torch.arange(4).expand(2, 4),
        }
        expected = getattr(upstream, builder)(**arguments)
        found = getattr(module, builder)(**arguments)
        assert type(found) is type(expected)
        assert found is None or torch.equal(found, expected)


@pytest.mark.parametrize("builder", BUILDERS)
def test_mask_functions_reach_upstream(builder: str) -> None:
    arguments: dict[str, Any] = {
        "config": config(8),
        "inputs_embeds": torch.zeros(1, 4, 16),
        "attention_mask": None,
        "past_key_values": None,
        "or_mask_function": lambda batch, head, query, key: key == 3,
    }
    assert torch.equal(getattr(masks, builder)(**arguments), getattr(upstream, builder)(**arguments))


@pytest.mark.parametrize("module", [masks, dense_masks], ids=["masks", "dense_masks"])
@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", ["or_mask_function", "and_mask_function"])
def test_mask_functions_are_refused_for_packed_input(module: Any, builder: str, name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{builder}: {name}"):
        built(module, builder, config(3), Packing.of_lengths(LENGTHS), **{name: lambda *places: True})


def test_what_the_config_must_have() -> None:
    packing = Packing.of_lengths(LENGTHS)
    with pytest.raises(ValueError, match="sliding_window"):
        built(masks, BUILDERS[1], config(None), packing)
    with pytest.raises(ValueError, match="attention_chunk_size"):
        built(masks, BUILDERS[2], config(None), packing)
    with pytest.raises(NotImplementedError, match="is_causal is False"):
        built(masks, BUILDERS[0], config(None, is_causal=False), packing)
    with pytest.raises(ValueError, match="window is negative: -1"):
        packing.mask(window=-1)


@pytest.mark.parametrize("builder", BUILDERS[1:])
def test_a_mask_for_no_layer_can_be_made_but_not_used(builder: str) -> None:
    """Upstream's configs say 0 where no layer slides; a row that is hidden as a whole would see its neighbours."""
    packing = Packing.of_lengths(LENGTHS)
    mask = built(masks, builder, config(0), packing)
    states = torch.ones(1, 1, packing.total, 8)
    with pytest.raises(ValueError, match=r"(window|chunk) 0\) lets no query attend"):
        segment_attention(torch.nn.Module(), states, states, states, mask)
    with pytest.raises(ValueError, match="lets no query attend"):
        built(dense_masks, builder, config(0), packing)


def test_the_masks_of_a_step_wait_for_no_device() -> None:
    packing = Packing.of_lengths(LENGTHS)
    with counted_transfers() as made:
        for builder in BUILDERS:
            mask = built(masks, builder, config(3), packing)
            assert mask.cu_seqlens.dtype is torch.int32
            mask.band(mask.max_seqlen, 0, torch.device("cpu"))
            built(dense_masks, builder, config(3), packing)
    assert made == []
