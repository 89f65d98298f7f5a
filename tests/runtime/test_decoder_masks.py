"""Masks of configurable encoders against upstream's extended masks; slots that are counted."""

import pytest
import torch
from transformers import RemBertConfig, RemBertModel

from runtime.qeff.cache import QEffDynamicCache
from runtime.qeff.decoder_masks import create_decoder_mask, no_bidirectional_mask
from runtime.qeff.slots import slot_count

SLOTS = 9


def config(**fields: bool) -> RemBertConfig:
    return RemBertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, **fields
    )


@pytest.mark.parametrize(("seen", "tokens"), [(0, 6), (4, 3), (7, 1)])
def test_agrees_with_upstream(seen: int, tokens: int) -> None:
    settings = config(is_decoder=True)
    length = seen + tokens
    upstream = RemBertModel(settings).get_extended_attention_mask(torch.ones(1, length), (1, tokens))
    found = create_decoder_mask(
        settings,
        None,
        past_key_values=QEffDynamicCache(ctx_len=SLOTS),
        position_ids=torch.arange(seen, length)[None],
        comp_ctx_lengths=None,
    )
    assert torch.equal(found[..., :length], upstream.expand(1, 1, tokens, length) < 0)
    assert found[..., length:].all(), "slots that are not written yet are hidden"


def test_an_encoder_is_an_error() -> None:
    with pytest.raises(ValueError, match="is_decoder=True"):
        create_decoder_mask(
            config(is_decoder=False),
            None,
            past_key_values=QEffDynamicCache(ctx_len=SLOTS),
            position_ids=torch.zeros(1, 1, dtype=torch.int64),
        )
    with pytest.raises(ValueError, match="attend both ways"):
        no_bidirectional_mask(config=config(is_decoder=False), attention_mask=None)


def test_a_given_mask_is_an_error() -> None:
    with pytest.raises(ValueError, match="attention_mask is not supported"):
        create_decoder_mask(
            config(is_decoder=True),
            torch.ones(1, 1),
            past_key_values=QEffDynamicCache(ctx_len=SLOTS),
            position_ids=torch.zeros(1, 1, dtype=torch.int64),
        )


def test_slots_are_those_of_the_buffer_or_of_the_compute_context() -> None:
    cache = QEffDynamicCache(ctx_len=SLOTS)
    assert slot_count(cache, None) == SLOTS
    assert slot_count(cache, torch.zeros(5, dtype=torch.int64)) == 5
