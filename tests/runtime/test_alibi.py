"""Biases over keys against upstream's attention, whose keys end at the last token; masks that carry a bias."""

import pytest
import torch
from onnx_harness import Session, export
from torch import Tensor, nn
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from runtime.qeff.alibi import add_mask, last_keys
from runtime.qeff.masks import mask_scores

HEADS, TABLE, PAD = 6, 24, -1


def table() -> Tensor:
    """Upstream's `[heads, 1, positions]`, 0 in the last column."""
    return build_mpt_alibi_tensor(HEADS, TABLE)


def upstream_bias(length: int) -> Tensor:
    """What upstream adds to the scores over `length` keys, `[heads, 1, length]`."""
    return table()[:, :, max(0, TABLE - length) :]


@pytest.mark.parametrize("slots", [7, 12, TABLE, TABLE + 5])
@pytest.mark.parametrize(
    "positions",
    [
        [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, PAD, PAD, PAD]],
        [[PAD, PAD, 0, 1, 2], [2, 3, 4, 5, 6]],
        [[6], [0]],
    ],
    ids=["right padding", "left padding", "decoding"],
)
def test_each_row_ends_at_its_own_last_token(positions: list[list[int]], slots: int) -> None:
    found = last_keys(table(), torch.tensor(positions), slots)
    assert found.shape == (len(positions), HEADS, 1, slots)
    for row, held in zip(found, positions, strict=True):
        length = max(held) + 1
        assert torch.equal(row[..., :length], upstream_bias(length))
        assert torch.equal(row[..., length:], table()[..., -1:].expand(-1, -1, slots - length))


def test_a_row_of_pads_is_finite() -> None:
    assert torch.isfinite(last_keys(table(), torch.tensor([[PAD, PAD]]), 9)).all()


def test_positions_beyond_the_table_are_an_error() -> None:
    with pytest.raises(IndexError):
        last_keys(table(), torch.tensor([[TABLE]]), TABLE + 1)


def test_a_bias_that_differs_between_queries_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[heads, 1, positions\]"):
        last_keys(torch.zeros(HEADS, 2, TABLE), torch.tensor([[0]]), 4)


class LastKeys(nn.Module):
    def forward(self, position_ids: Tensor, keys: Tensor) -> Tensor:
        return last_keys(table(), position_ids, keys.shape[-1])


def test_one_graph_for_all_shapes() -> None:
    model = export(
        LastKeys(),
        (torch.tensor([[0, 1, 2], [0, 1, PAD]]), torch.zeros(5)),
        ["position_ids", "keys"],
        ["bias"],
        {"position_ids": {0: "batch", 1: "seq"}, "keys": {0: "slots"}, "bias": {0: "batch", 3: "slots"}},
    )
    session = Session(model)
    for positions, slots in (([[0, 1, 2, 3], [PAD, PAD, 0, 1]], 11), ([[9]], 10), ([[PAD], [4], [0]], 5)):
        given = torch.tensor(positions)
        (found,) = session(position_ids=given, keys=torch.zeros(slots))
        assert torch.equal(found, last_keys(table(), given, slots))
    with pytest.raises(Exception, match="out of data bounds"):
        session(position_ids=torch.tensor([[TABLE]]), keys=torch.zeros(TABLE + 1))


def test_a_boolean_mask_hides_and_a_floating_one_is_added() -> None:
    scores = torch.randn(2, HEADS, 3, 5, generator=torch.Generator().manual_seed(0))
    hidden = torch.tensor([False, True, False, False, True])
    assert torch.equal(add_mask(scores, hidden), mask_scores(scores, hidden))
    bias = torch.arange(5.0).masked_fill(hidden, torch.finfo(torch.float32).min)
    shown = ~hidden
    assert torch.equal(add_mask(scores, bias)[..., shown], (scores + bias)[..., shown])
    weights = add_mask(scores, bias).softmax(-1)
    assert torch.equal(weights[..., hidden], torch.zeros_like(weights[..., hidden]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_row_hidden_as_a_whole_has_no_nan(dtype: torch.dtype) -> None:
    lowest = torch.finfo(dtype).min
    masked = add_mask(torch.full((1, 1, 1, 4), -60.0, dtype=dtype), torch.full((4,), lowest, dtype=dtype))
    assert torch.isfinite(masked).all()
    assert torch.allclose(masked.float().softmax(-1), torch.tensor(0.25))
