"""Rows of upstream's tables of visible keys, by position."""

import pytest
import torch
from onnx_harness import Session, export
from torch import Tensor, nn
from transformers import GPTNeoConfig
from transformers.models.gpt_neo.modeling_gpt_neo import GPTNeoSelfAttention

from runtime.qeff.causal_table import table_rows

TABLE, WINDOW, PAD = 16, 3, -1


def table(kind: str) -> Tensor:
    """Upstream's buffer, `[1, 1, positions, positions]`."""
    config = GPTNeoConfig(
        hidden_size=8, num_heads=2, num_layers=2, attention_types=[[["global", "local"], 1]], window_size=WINDOW
    )
    config.max_position_embeddings = TABLE
    found = GPTNeoSelfAttention(config, kind).bias
    assert found.shape == (1, 1, TABLE, TABLE)
    return found


@pytest.mark.parametrize("kind", ["global", "local"])
@pytest.mark.parametrize("slots", [9, TABLE])
def test_agrees_with_upstream(kind: str, slots: int) -> None:
    """Prefill, a second chunk and decoding: upstream takes the last rows before the keys' length."""
    for seen, tokens in ((0, 7), (4, 5), (8, 1)):
        length = seen + tokens
        expected = table(kind)[:, :, length - tokens : length, :length]
        found = table_rows(table(kind), torch.arange(seen, length)[None], slots)
        assert torch.equal(found[..., :length], expected)
        assert not found[..., length:].any()


def test_rows_of_a_batch_are_their_own() -> None:
    positions = torch.tensor([[0, 1, 2], [6, 7, PAD]])
    found = table_rows(table("local"), positions, 10)
    assert found.shape == (2, 1, 3, 10)
    for row, held in zip(found, positions.tolist(), strict=True):
        for seen, position in zip(row[0], held, strict=True):
            assert torch.equal(seen, table("local")[0, 0, max(position, 0), :10])


class Rows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", table("local"))

    def forward(self, position_ids: Tensor, keys: Tensor) -> Tensor:
        return table_rows(self.bias, position_ids, keys.shape[-1])


def test_one_graph_for_all_shapes() -> None:
    model = export(
        Rows(),
        (torch.tensor([[0, 1, 2], [0, 1, PAD]]), torch.zeros(5)),
        ["position_ids", "keys"],
        ["seen"],
        {"position_ids": {0: "batch", 1: "seq"}, "keys": {0: "slots"}, "seen": {0: "batch", 2: "seq", 3: "slots"}},
    )
    session = Session(model)
    for positions, slots in (([[0, 1, 2, 3], [PAD, PAD, 0, 1]], 11), ([[9]], 10), ([[PAD], [4], [0]], 5)):
        given = torch.tensor(positions)
        (found,) = session(position_ids=given, keys=torch.zeros(slots))
        assert torch.equal(found, table_rows(table("local"), given, slots))
