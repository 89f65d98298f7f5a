"""Experts over batches of rows: the same as a loop over experts, in torch and in ONNX Runtime for other sizes."""

from collections.abc import Callable

import pytest
import torch
from onnx_harness import Session, export
from torch import Tensor, nn

from runtime.qeff import experts

EXPERTS, INNER, OUTER = 5, 7, 6


def looped(states: Tensor, index: Tensor, weight: Tensor, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The product, one row at a time."""
    return torch.stack([product(row, weight[expert]) for row, expert in zip(states, index.tolist(), strict=True)])


def sorted_rows(counts: list[int]) -> tuple[Tensor, Tensor]:
    """Random rows, and the expert of each."""
    return torch.randn(sum(counts), INNER), torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))


# every expert hit; some never; one for all; a single row
COUNTS = ([2, 1, 3, 1, 2], [0, 4, 0, 0, 3], [0, 0, 0, 0, 6], [0, 0, 1, 0, 0])


@pytest.mark.parametrize("counts", COUNTS)
def test_grouped_products_are_those_of_a_loop(counts: list[int]) -> None:
    states, index = sorted_rows(counts)
    out_in, in_out = torch.randn(EXPERTS, OUTER, INNER), torch.randn(EXPERTS, INNER, OUTER)
    sizes = torch.tensor(counts)
    assert experts.expert_of_row(len(index), sizes).equal(index)
    torch.testing.assert_close(
        experts.grouped_linear(states, out_in, sizes), looped(states, index, out_in, nn.functional.linear)
    )
    torch.testing.assert_close(
        experts.grouped_matmul(states, in_out, sizes), looped(states, index, in_out, torch.matmul)
    )


@pytest.mark.parametrize("chosen", [[[0, 2], [4, 0], [1, 3]], [[3, 3]], [[1], [1], [1], [4]]])
def test_counts_are_those_of_the_rows(chosen: list[list[int]]) -> None:
    counts = experts.count_of_each(torch.tensor(chosen), EXPERTS)
    assert counts.tolist() == [sum(row.count(e) for row in chosen) for e in range(EXPERTS)]


def test_routed_rows_are_summed_per_token() -> None:
    hidden, index = torch.randn(3, INNER), torch.tensor([[0, 2], [4, 0], [1, 3]])
    weight, gates = torch.randn(EXPERTS, INNER, INNER), torch.rand(3, 2)
    rows = experts.expert_linear(experts.routed_tokens(hidden, index), weight[index.reshape(-1)])
    found = experts.sum_over_choices(rows * gates.reshape(-1, 1), index)
    expected = torch.zeros_like(hidden)
    for token in range(3):
        for choice in range(2):
            expected[token] += gates[token, choice] * (weight[index[token, choice]] @ hidden[token])
    torch.testing.assert_close(found, expected)


def test_rows_are_added_where_indices_repeat() -> None:
    start, rows, index = torch.randn(4, INNER), torch.randn(6, INNER), torch.tensor([0, 3, 3, 1, 3, 0])
    expected = start.clone()
    for row, place in zip(rows, index.tolist(), strict=True):
        expected[place] += row
    before = start.clone()
    torch.testing.assert_close(experts.add_rows(start, index, rows), expected)
    assert start.equal(before)


class SortedExperts(nn.Module):
    """Sort by expert, multiply by groups, add up per token: the way of upstream's grouped experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, OUTER, INNER))
        self.back = nn.Parameter(torch.randn(EXPERTS, OUTER, INNER))

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:
        counts = experts.count_of_each(index, EXPERTS)
        order = index.flatten().sort(0)[1]
        token = order.div(index.shape[-1], rounding_mode="trunc")
        rows = experts.grouped_linear(hidden[token], self.weight, counts)
        rows = experts.grouped_matmul(rows, self.back, counts)
        return experts.add_rows(torch.zeros_like(hidden), token, rows)


def test_sorted_experts_in_onnx_runtime() -> None:
    torch.manual_seed(0)
    module = SortedExperts()

    def inputs(tokens: int) -> tuple[Tensor, Tensor]:
        return torch.randn(tokens, INNER), torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(tokens)])

    model = export(module, inputs(3), ["hidden", "index"], ["out"], {"hidden": {0: "n"}, "index": {0: "n"}})
    session = Session(model)
    for tokens in (1, 3, 8):
        hidden, index = inputs(tokens)
        rows = hidden.new_zeros(tokens, INNER)
        for token in range(tokens):
            for expert in index[token].tolist():
                rows[token] += module.weight[expert] @ hidden[token] @ module.back[expert]
        (found,) = session(hidden=hidden, index=index)
        torch.testing.assert_close(found, rows, rtol=1e-4, atol=1e-4)
