"""Sequence parallelism over gloo: exchanges and their gradients against one process."""

from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from process_group import run_ranks
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from runtime.training import dense_masks, ulysses
from runtime.training.loss import aligned
from runtime.training.outputs import of_all_tokens
from runtime.training.packing import Packing
from runtime.training.ulysses import SequenceParallel, sequence_parallel, set_sequence_parallel

TOKENS, WIDTH = 10, 3


def ranks_of(size: int, rank: int = 0, reduction: Any = "mean") -> SequenceParallel:
    """Ranks without a process group, for what exchanges nothing."""
    return SequenceParallel(SimpleNamespace(), rank, size, reduction)  # type: ignore[arg-type]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Cutting


@pytest.mark.parametrize("length", [1, 3, 4, 9, 16])
@pytest.mark.parametrize("size", [2, 4])
def test_shares_in_order_are_the_row_and_its_padding(length: int, size: int) -> None:
    row = torch.arange(100, 100 + length).unsqueeze(0)
    repeated = torch.cat([ranks_of(size, rank).cut(row) for rank in range(size)], 1)
    filled = torch.cat([ranks_of(size, rank).cut(row, fill=-100) for rank in range(size)], 1)
    missing = ranks_of(size).padding(length)
    assert repeated.shape[1] == length + missing and repeated.shape[1] % size == 0 and missing < size
    assert repeated[0].tolist() == row[0].tolist() + [100 + length - 1] * missing
    assert filled[0].tolist() == row[0].tolist() + [-100] * missing


def test_cut_along_another_dimension() -> None:
    positions = torch.arange(10).reshape(2, 5)
    assert ranks_of(2, 1).cut(positions, -1, fill=0).tolist() == [[3, 4, 0], [8, 9, 0]]


# Exchanges


def exchange(heads: int, key_value_heads: int) -> dict[str, Tensor]:
    ranks = SequenceParallel.of(dist.group.WORLD)
    row = {"query": drawn(1, heads, TOKENS, WIDTH, seed=1), "key": drawn(1, key_value_heads, TOKENS, WIDTH, seed=2)}
    row["value"] = drawn(1, key_value_heads, TOKENS, WIDTH + 2, seed=3)
    shares = {name: ranks.cut(states, 2, fill=0).clone().requires_grad_() for name, states in row.items()}
    query, key, value = ranks.all_tokens(shares["query"], shares["key"], shares["value"])
    assert query.shape[1] == heads // ranks.size and key.shape[1] == value.shape[1] == max(
        key_value_heads // ranks.size, 1
    )
    output = attend(query[:, :, :TOKENS], key[:, :, :TOKENS], value[:, :, :TOKENS])
    output = torch.nn.functional.pad(output, (0, 0, 0, 0, 0, query.shape[2] - TOKENS))
    mixed = ranks.all_heads(output)
    assert mixed.is_contiguous()  # as upstream's attention functions return it
    weights = ranks.cut(drawn(1, TOKENS, heads, WIDTH + 2, seed=4), fill=0)
    (mixed * weights).sum().backward()
    gradients = {name: share.grad for name, share in shares.items()}
    return {"output": mixed.detach(), **gradients}


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`[1, H, T, D]`, fewer KV heads allowed, to `[1, T, H, Dv]`."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return ((query @ key.transpose(2, 3)).softmax(-1) @ value).transpose(1, 2)


HEADS = {2: [(4, 4), (6, 2), (4, 1)], 4: [(8, 2), (4, 1), (8, 4)]}


def all_exchanges(size: int) -> dict[tuple[int, int], dict[str, Tensor]]:
    return {heads: exchange(*heads) for heads in HEADS[size]}


@cache
def exchanged(size: int) -> list[dict[tuple[int, int], dict[str, Tensor]]]:
    return run_ranks(size, all_exchanges, size)


@pytest.mark.parametrize(
    ("size", "heads", "key_value_heads"), [(size, *heads) for size in HEADS for heads in HEADS[size]]
)
def test_attention_between_the_exchanges_is_that_of_one_process(size: int, heads: int, key_value_heads: int) -> None:
    results = [result[heads, key_value_heads] for result in exchanged(size)]

    query = drawn(1, heads, TOKENS, WIDTH, seed=1).requires_grad_()
    key = drawn(1, key_value_heads, TOKENS, WIDTH, seed=2).requires_grad_()
    value = drawn(1, key_value_heads, TOKENS, WIDTH + 2, seed=3).requires_grad_()
    output = attend(query, key, value)
    (output * drawn(1, TOKENS, heads, WIDTH + 2, seed=4)).sum().backward()

    def joined(name: str, dim: int) -> Tensor:
        return torch.cat([result[name] for result in results], dim).narrow(dim, 0, TOKENS)

    torch.testing.assert_close(joined("output", 1), output.detach())
    for name, whole in {"query": query, "key": key, "value": value}.items():
        torch.testing.assert_close(joined(name, 2), whole.grad, msg=lambda text, name=name: f"{name}: {text}")


def totals(reduction: Any) -> dict[str, Tensor]:
    ranks = SequenceParallel.of(dist.group.WORLD, reduction)
    weight = drawn(WIDTH, seed=7).requires_grad_()
    local = ranks.cut(drawn(1, TOKENS, WIDTH, seed=8), fill=0) * weight
    by_total = ranks.total((local**2).sum())
    by_total.backward()
    grad_by_total, weight.grad = weight.grad, None
    local = ranks.cut(drawn(1, TOKENS, WIDTH, seed=8), fill=0) * weight
    whole = ranks.whole(local, TOKENS)
    by_whole = (whole**2).sum()
    by_whole.backward()
    return {"total": by_total.detach(), "from_total": grad_by_total, "whole": whole.detach(), "from_whole": weight.grad}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_totals_and_whole_rows_have_one_process_gradients_after_the_reduction(reduction: str) -> None:
    results = run_ranks(4, totals, reduction)
    weight = drawn(WIDTH, seed=7).requires_grad_()
    row = drawn(1, TOKENS, WIDTH, seed=8) * weight
    (row**2).sum().backward()
    combine = torch.mean if reduction == "mean" else torch.sum
    for result in results:
        torch.testing.assert_close(result["total"], (row**2).sum().detach())
        torch.testing.assert_close(result["whole"], row.detach())
    for name in ("from_total", "from_whole"):
        torch.testing.assert_close(combine(torch.stack([result[name] for result in results]), 0), weight.grad)


# Losses over router logits


def balance(function: Any, packing: Packing, logits: tuple[Tensor, ...]) -> Tensor:
    return of_all_tokens(function, packing)(logits, 4, top_k=2, attention_mask=packing)


def shared_balance() -> tuple[Tensor, Tensor]:
    ranks = SequenceParallel.of(dist.group.WORLD)
    weight = drawn(WIDTH, 4, seed=11).requires_grad_()
    packing = replace(Packing.of_lengths((3, TOKENS - 3)), group=ranks)
    local = tuple(ranks.cut(drawn(TOKENS, WIDTH, seed=layer), 0) @ weight for layer in range(2))
    loss = balance(load_balancing_loss_func, packing, local)
    loss.backward()
    with pytest.raises(ValueError, match=r"router logits are \[2, 4\], this rank has 3 tokens"):
        balance(load_balancing_loss_func, packing, tuple(part[:2] for part in local))
    return loss.detach(), weight.grad


def test_loss_over_router_logits_is_that_of_all_tokens() -> None:
    weight = drawn(WIDTH, 4, seed=11).requires_grad_()
    logits = tuple(drawn(TOKENS, WIDTH, seed=layer) @ weight for layer in range(2))
    loss = load_balancing_loss_func(logits, 4, top_k=2)
    loss.backward()
    results = run_ranks(4, shared_balance)
    for found, _ in results:
        torch.testing.assert_close(found, loss.detach())
    torch.testing.assert_close(torch.stack([gradient for _, gradient in results]).mean(0), weight.grad)

    unshared = Packing.of_lengths((3, TOKENS - 3))
    torch.testing.assert_close(balance(load_balancing_loss_func, unshared, logits), loss)
    assert of_all_tokens(load_balancing_loss_func, None) is load_balancing_loss_func


# Checks


@pytest.mark.parametrize(
    ("size", "heads", "key_value_heads", "numbers"),
    [
        (4, 6, 6, "6 attention heads"),
        (2, 7, 7, "7 attention heads"),
        (4, 12, 6, "6 key-value heads"),
        (4, 12, 3, "3 key"),
    ],
)
def test_head_counts_that_cannot_be_shared_are_refused(
    size: int, heads: int, key_value_heads: int, numbers: str
) -> None:
    with pytest.raises(ValueError, match=f"over {size} ranks: {numbers}"):
        ranks_of(size).check_heads(heads, key_value_heads)
    text = SimpleNamespace(num_attention_heads=heads, num_key_value_heads=key_value_heads)
    with pytest.raises(ValueError, match=numbers):
        ranks_of(size).check_config(SimpleNamespace(get_text_config=lambda: text))


def test_head_counts_by_layer_and_undeclared_ones() -> None:
    by_layer = SimpleNamespace(num_attention_heads=[4, 8], num_key_value_heads=[4, 3])
    with pytest.raises(ValueError, match="3 key-value heads"):
        ranks_of(4).check_config(SimpleNamespace(get_text_config=lambda: by_layer))
    ranks_of(4).check_config(SimpleNamespace(get_text_config=lambda: SimpleNamespace(hidden_size=8)))


@pytest.mark.parametrize("nested", ["nested", "flat"])
def test_frequencies_that_would_differ_between_ranks_are_refused(nested: str) -> None:
    rope: dict[str, Any] = {"rope_type": "longrope", "original_max_position_embeddings": 8}
    text = SimpleNamespace(
        max_position_embeddings=32, rope_parameters={"full_attention": rope} if nested == "nested" else rope
    )
    config = SimpleNamespace(get_text_config=lambda: text)
    ranks_of(2).check_positions(config, torch.arange(8).unsqueeze(0))
    with pytest.raises(NotImplementedError, match="'longrope' and positions up to 9: above 8"):
        ranks_of(2).check_positions(config, torch.arange(9).unsqueeze(0))
    rope["rope_type"] = "yarn"
    ranks_of(2).check_positions(config, torch.arange(9).unsqueeze(0))


def test_losses_that_a_model_computes_itself_are_refused() -> None:
    packing = replace(Packing.of_lengths((3, 4)), group=ranks_of(2))
    with pytest.raises(NotImplementedError, match="computes its loss itself"):
        aligned(torch.zeros(1, 7, dtype=torch.int64), packing)


def test_attention_that_adds_masks_itself_is_refused() -> None:
    packing = replace(Packing.of_lengths((3, 4)), group=ranks_of(2))
    with pytest.raises(NotImplementedError, match="cannot share a row among ranks"):
        dense_masks.create_causal_mask(SimpleNamespace(), torch.zeros(1, 4, 8), packing)


def compare() -> list[str]:
    ranks = SequenceParallel.of(dist.group.WORLD)
    ids = torch.tensor([[5, 6, 7]])
    ranks.check_same(ids=ids, lengths=(2, 1), positions=None)
    errors = []
    for held in (
        {"ids": ids + (ids == 6) * ranks.rank, "lengths": (3,)},
        {"ids": ids.roll(ranks.rank), "lengths": (3,)},
        {"ids": ids, "lengths": (3,) if ranks.rank else (2, 1)},
        {"ids": ids[:, : 3 - ranks.rank], "lengths": (3,)},
    ):
        with pytest.raises(ValueError) as error:
            ranks.check_same(**held)
        errors.append(str(error.value))
    return errors


def test_different_batches_are_refused_on_every_rank() -> None:
    for errors in run_ranks(2, compare):
        assert ["(ids differ)" in text for text in errors] == [True, True, False, True]
        assert "(lengths differ)" in errors[2]


def settings() -> list[Any]:
    world = dist.group.WORLD
    halves = [dist.new_group([0]), dist.new_group([1])]
    own, other = halves[dist.get_rank()], halves[1 - dist.get_rank()]
    assert ulysses.current() is None
    with sequence_parallel(world, "sum") as ranks:
        assert ranks is ulysses.current() and (ranks.size, ranks.rank) == (2, dist.get_rank())
        assert ranks.gradient_factor == 1
        with sequence_parallel(None):
            assert ulysses.current() is None
        with sequence_parallel(own) as alone:
            assert alone is None and ulysses.current() is None
        assert ulysses.current() is ranks
    assert ulysses.current() is None
    assert set_sequence_parallel(world) is ulysses.current()
    with pytest.raises(ValueError, match="not a member"):
        set_sequence_parallel(other)
    with pytest.raises(ValueError, match="'avg'"):
        set_sequence_parallel(world, "avg")  # type: ignore[arg-type]
    assert ulysses.current() is not None
    set_sequence_parallel(None)
    assert ulysses.current() is None
    return []


def test_setting_and_context() -> None:
    run_ranks(2, settings)
