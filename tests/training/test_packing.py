"""What `pack` makes of every way to give a batch, against slices by hand; what it refuses; what it costs."""

import copy
import pickle
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packed_reference import Patched, counted_transfers
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint
from transformers import DataCollatorWithFlattening, DynamicCache, LlamaConfig

from runtime.training.frequencies import check_frequencies
from runtime.training.packing import Packing, no_cache, own_positions, pack
from runtime.training.ulysses import SequenceParallel

LEFT = [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]]
RIGHT = [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
BOTH = [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]


def ids_like(mask: Any) -> Tensor:
    """Ids that name their place: row and column can be read off."""
    rows, columns = len(mask), len(mask[0])
    return torch.arange(rows).mul(100)[:, None] + torch.arange(columns)


def packed(
    input_ids: Tensor, mask: Any = None, position_ids: Tensor | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor, Packing]:
    given = torch.tensor(mask) if isinstance(mask, list) else mask
    ids, embeds, positions, packing = pack(Patched(), input_ids, None, position_ids, given, kwargs)
    assert ids is not None and embeds is None and positions is not None
    assert isinstance(packing, Packing)
    assert not {"cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"} & kwargs.keys()
    assert packing.cu_seqlens.dtype == torch.int32
    assert packing.cu_seqlens.tolist() == [sum(packing.lengths[:end]) for end in range(len(packing.lengths) + 1)]
    assert packing.total == ids.shape[1] and packing.max_seqlen == max(packing.lengths)
    assert ids.tolist() == [input_ids.flatten()[packing.word_idx].tolist()]
    return ids, positions, packing


# Padding


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float32], ids=str)
@pytest.mark.parametrize("mask", [LEFT, RIGHT, BOTH], ids=["left", "right", "both"])
def test_padding_goes_and_sequences_keep_their_order(mask: list[list[int]], kind: torch.dtype) -> None:
    given = torch.tensor(mask).to(kind)
    input_ids = ids_like(mask)
    ids, positions, packing = packed(input_ids, given)
    rows = [input_ids[row][torch.tensor(mask[row]).bool()].tolist() for row in range(len(mask))]
    assert ids[0].tolist() == [name for row in rows for name in row]
    assert packing.lengths == tuple(len(row) for row in rows)
    assert positions[0].tolist() == [place for row in rows for place in range(len(row))]
    assert positions is packing.position_ids and packing.shape == (3, 5)


def test_rows_without_a_token_are_dropped() -> None:
    ids, _, packing = packed(ids_like([[1] * 3] * 4), [[0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]])
    assert ids.tolist() == [[100, 101, 302]] and packing.lengths == (2, 1)


@pytest.mark.parametrize("mask", [None, [[1] * 4] * 3], ids=["no mask", "all ones"])
def test_without_padding_every_row_is_a_segment_and_nothing_is_gathered(mask: Any) -> None:
    ids, positions, packing = packed(ids_like([[1] * 4] * 3), mask)
    assert packing.lengths == (4, 4, 4) and packing.indices is None
    assert ids[0].tolist() == ids_like([[1] * 4] * 3).flatten().tolist()
    assert positions.tolist() == [[0, 1, 2, 3] * 3] and packing.word_idx.tolist() == list(range(12))


def test_one_row_of_one_token() -> None:
    ids, positions, packing = packed(torch.tensor([[7]]))
    assert (ids.tolist(), positions.tolist(), packing.lengths) == ([[7]], [[0]], (1,))


def test_embeddings_are_gathered_and_their_gradient_comes_back() -> None:
    embeds = torch.randn(3, 5, 4, requires_grad=True)
    ids, found, _, packing = pack(Patched(), None, embeds, None, torch.tensor(BOTH), {})
    assert ids is None and found is not None and found.shape == (1, packing.total, 4)
    found.square().sum().backward()
    assert embeds.grad is not None
    torch.testing.assert_close(embeds.grad, 2 * embeds.detach() * torch.tensor(BOTH)[..., None])


def test_gather_and_scatter_are_inverse_at_the_tokens() -> None:
    _, _, packing = packed(ids_like(BOTH), BOTH)
    values = torch.randn(1, packing.total, 3, 2, requires_grad=True)
    back = packing.scatter(values)
    assert back.shape == (3, 5, 3, 2) and torch.equal(packing.gather(back), values)
    assert not back[torch.tensor(BOTH) == 0].any()
    back.sum().backward()
    assert values.grad is not None and bool((values.grad == 1).all())


# Segments


def test_equal_values_of_a_mask_are_a_segment() -> None:
    mask = [[1, 1, 2, 2, 3, 0], [0, 5, 5, 0, 7, 7]]
    ids, positions, packing = packed(ids_like(mask), mask)
    assert packing.lengths == (2, 2, 1, 2, 2)
    assert ids.tolist() == [[0, 1, 2, 3, 4, 101, 102, 104, 105]]
    assert positions.tolist() == [[0, 1, 0, 1, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize("name", ["cu_seqlens", "cu_seq_lens", "cu_seq_lens_q", "cu_seq_lens_k"])
@pytest.mark.parametrize(
    "given", [[0, 3, 3, 4, 9], torch.tensor([0, 3, 4, 9], dtype=torch.int32)], ids=["list", "tensor"]
)
def test_boundaries_of_a_packed_row(name: str, given: Any) -> None:
    ids, positions, packing = packed(ids_like([[1] * 9]), **{name: given})
    assert packing.lengths == (3, 1, 5) and packing.indices is None and packing.shape == (1, 9)
    assert ids.tolist() == [list(range(9))] and positions.tolist() == [[0, 1, 2, 0, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize("mask", [None, [[1] * 6]], ids=["no mask", "all ones"])
def test_seq_idx_names_segments(mask: Any) -> None:
    seq_idx = torch.tensor([[0, 0, 1, 2, 2, 2]], dtype=torch.int32)
    _, positions, packing = packed(ids_like([[1] * 6]), mask, seq_idx=seq_idx)
    assert packing.lengths == (2, 1, 3) and positions.tolist() == [[0, 1, 0, 0, 1, 2]]


def test_seq_idx_with_padding() -> None:
    seq_idx = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    mask = [[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]
    _, _, packing = packed(ids_like(mask), mask, seq_idx=seq_idx)
    assert packing.lengths == (2, 1, 4)


@pytest.mark.parametrize("mask", [None, [[1] * 7]], ids=["no mask", "all ones"])
@pytest.mark.parametrize(
    ("positions", "lengths"),
    [
        ([0, 1, 2, 0, 1, 0, 1], (3, 2, 2)),
        ([0, 1, 2, 3, 4, 5, 6], (7,)),
        ([5, 6, 7, 8, 9, 10, 11], (7,)),
        ([0, 1, 2, 3, 3, 4, 5], (4, 3)),
        ([0, 0, 0, 0, 0, 0, 0], (1,) * 7),
    ],
)
def test_positions_that_start_again_start_a_segment(positions: list[int], lengths: tuple[int, ...], mask: Any) -> None:
    _, found, packing = packed(ids_like([[1] * 7]), mask, torch.tensor([positions]))
    assert packing.lengths == lengths and found.tolist() == [positions]


def test_positions_of_several_packed_rows() -> None:
    """Upstream's SDPA masks keep these apart, its flash attention does not."""
    positions = torch.tensor([[0, 1, 0, 1, 2], [0, 0, 1, 2, 3]])
    _, found, packing = packed(ids_like([[1] * 5] * 2), None, positions)
    assert packing.lengths == (2, 3, 1, 4) and found.tolist() == [positions.flatten().tolist()]
    _, found, packing = packed(ids_like([[1] * 5] * 2), None, positions[:1])
    assert packing.lengths == (2, 3, 2, 3) and found.tolist() == [[0, 1, 0, 1, 2] * 2]


@pytest.mark.parametrize("further", [{}, {"return_flash_attn_kwargs": True}, {"return_seq_idx": True}], ids=str)
def test_the_flattening_collator(further: dict[str, bool]) -> None:
    samples = [{"input_ids": [5, 6, 7]}, {"input_ids": [8]}, {"input_ids": [9, 10, 11, 12]}]
    batch = DataCollatorWithFlattening(return_tensors="pt", **further)(samples)
    input_ids, positions = batch.pop("input_ids"), batch.pop("position_ids")
    batch.pop("labels")
    ids, _, found, packing = pack(Patched(), input_ids, None, positions, None, batch)
    assert packing.lengths == (3, 1, 4) and torch.equal(ids, input_ids) and torch.equal(found, positions)
    assert not batch, "what was read must not reach upstream's attention"


def test_the_flattening_collator_without_positions() -> None:
    collator = DataCollatorWithFlattening(
        return_tensors="pt", return_position_ids=False, return_flash_attn_kwargs=True, return_seq_idx=True
    )
    batch = collator([{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}])
    input_ids = batch.pop("input_ids")
    batch.pop("labels")
    _, _, positions, packing = pack(Patched(), input_ids, None, None, None, batch)
    assert packing.lengths == (3, 2) and positions.tolist() == [[0, 1, 2, 0, 1]] and not batch


# Positions


@pytest.mark.parametrize("mask", [LEFT, RIGHT, BOTH], ids=["left", "right", "both"])
@pytest.mark.parametrize("axes", [(), (3,), (4,)], ids=["one axis", "three", "four"])
def test_positions_go_with_their_tokens(mask: list[list[int]], axes: tuple[int, ...]) -> None:
    positions = torch.arange(1, 1 + 15 * max([*axes, 1])).view(*axes, 3, 5)
    _, found, packing = packed(ids_like(mask), mask, positions)
    assert found.shape == (*axes, 1, packing.total)
    assert torch.equal(found[..., 0, :], positions[..., torch.tensor(mask).bool()])


@pytest.mark.parametrize("axes", [(), (3,)], ids=["one axis", "three"])
def test_positions_of_one_row_are_every_rows(axes: tuple[int, ...]) -> None:
    positions = torch.arange(10, 10 + 5 * max([*axes, 1])).view(*axes, 1, 5)
    _, found, _ = packed(ids_like(RIGHT), RIGHT, positions)
    expected = positions.expand(*axes, 3, 5)[..., torch.tensor(RIGHT).bool()]
    assert torch.equal(found[..., 0, :], expected)


def test_positions_of_several_axes_start_no_segment() -> None:
    """Image tokens repeat and jump in them (a wrong guess of upstream's flash attention)."""
    positions = torch.tensor([0, 1, 1, 1, 2, 0, 1]).expand(3, 1, 7)
    _, found, packing = packed(ids_like([[1] * 7]), None, positions)
    assert packing.lengths == (7,) and torch.equal(found, positions)


def test_positions_from_a_padded_tokenizer_are_kept() -> None:
    mask = torch.tensor(LEFT)
    positions = mask.cumsum(-1).sub(1).masked_fill(mask == 0, 1)
    _, found, packing = packed(ids_like(LEFT), LEFT, positions)
    assert packing.lengths == (3, 5, 1) and torch.equal(found, packing.position_ids)
    assert found.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4, 0]]


# Refusals


@pytest.mark.parametrize(
    ("mask", "further", "message"),
    [
        ([[1, 1, 0, 1]], {}, "hole: row 0 goes on at column 3"),
        ([[1, 2, 1, 1]], {}, "hole: row 0 goes on at column 2"),
        ([[True, False, True, True]], {}, "hole"),
        ([[0, 0, 0, 0]], {}, "no token"),
        ([[0.0, 0.0, -1e9, 0.0]], {}, "negative values"),
        (torch.ones(1, 1, 4, 4), {}, r"found \[1, 1, 4, 4\]"),
        (torch.ones(1, 9), {}, "must agree"),
        ({"full_attention": None}, {}, "found dict"),
        (None, {"cu_seqlens": [0, 3]}, "from 0 to 4, found 0 to 3"),
        (None, {"cu_seqlens": [1, 4]}, "from 0 to 4, found 1 to 4"),
        (None, {"cu_seqlens": [0, 3, 2, 4]}, "decreases"),
        (None, {"cu_seqlens": [[0, 4]]}, r"must be \[segments \+ 1\]"),
        (None, {"cu_seq_lens_q": [0, 1, 4], "cu_seq_lens_k": [0, 2, 4]}, "cu_seq_lens_q and cu_seq_lens_k differ"),
        (None, {"cu_seq_lens_q": [0, 1, 4], "max_length_q": 2}, "max_length_q is 2, the longest segment has 3"),
        ([[1, 1, 1, 0]], {"cu_seqlens": [0, 4]}, "cannot go together"),
        (None, {"cu_seqlens": [0, 1, 4], "seq_idx": torch.tensor([[0, 0, 1, 1]])}, "do not name the same segments"),
        (None, {"seq_idx": torch.tensor([0, 0, 1, 1])}, "seq_idx is"),
        (None, {"seq_idx": torch.tensor([[0, 1, 0, 0]])}, "seq_idx has a hole"),
        (None, {"seq_idx": torch.tensor([[0, 0, 1, -1]])}, "negative"),
        (None, {"position_ids": torch.arange(4)}, "position_ids must be"),
        (None, {"position_ids": torch.arange(5)[None]}, "position_ids must be"),
        (None, {"position_ids": torch.arange(4).expand(2, 4)}, "the input has 1 rows"),
        ([[1, 1, 1, 0]], {"position_ids": torch.tensor([[0, 1, 0, 0]])}, "start again at row 0, column 2"),
        (None, {"logits_layout": "rows"}, "packed, padded, found 'rows'"),
        (None, {"output_attentions": True}, "output_attentions is not supported"),
    ],
)
def test_what_cannot_be_packed_is_an_error(mask: Any, further: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed(ids_like([[1] * 4]), mask, **further)


def test_boundaries_describe_one_row() -> None:
    with pytest.raises(ValueError, match=r"one packed row, the input is \[2, 4\]"):
        packed(ids_like([[1] * 4] * 2), cu_seqlens=[0, 4])


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        packed(torch.empty(2, 0, dtype=torch.int64))


def test_exactly_one_input() -> None:
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        pack(Patched(), None, None, None, None, {})
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        pack(Patched(), torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2, 3), None, None, {})


def test_attention_weights_of_the_config_are_refused() -> None:
    with pytest.raises(ValueError, match="output_attentions"):
        pack(Patched(output_attentions=True), torch.ones(1, 2, dtype=torch.int64), None, None, None, {})


# What is left alone


def test_without_the_feature_everything_returns_as_it_came() -> None:
    ids, positions, mask = ids_like(BOTH), torch.arange(5)[None], torch.ones(1, 1, 5, 5)
    kwargs = {"cu_seqlens": torch.tensor([0, 5]), "seq_idx": None, "output_attentions": True}
    found = pack(nn.Module(), ids, None, positions, mask, kwargs)
    assert found[0] is ids and found[1] is None and found[2] is positions and found[3] is mask
    assert set(kwargs) == {"cu_seqlens", "seq_idx", "output_attentions"}


def test_packed_input_is_not_packed_again() -> None:
    ids, positions, packing = packed(ids_like(BOTH), BOTH)
    again = pack(Patched(), ids, None, positions + 1, packing, {})
    assert again[0] is ids and torch.equal(again[2], positions + 1) and again[3] is packing
    assert pack(Patched(), ids, None, None, packing, {})[2] is packing.position_ids


def test_other_keywords_stay() -> None:
    kwargs: dict[str, Any] = {"num_items_in_batch": 3, "shift_labels": None, "logits_layout": "padded"}
    *_, packing = pack(Patched(), ids_like(BOTH), None, None, torch.tensor(BOTH), kwargs)
    assert kwargs == {"num_items_in_batch": 3, "shift_labels": None} and packing.logits_layout == "padded"


# The object


def test_lengths_make_a_packing() -> None:
    packing = Packing.of_lengths([3, 0, 1])
    assert packing.lengths == (3, 1) and packing.shape == (1, 4) and packing.indices is None
    assert packing.segment_ids.tolist() == [0, 0, 0, 1] and packing.offsets.tolist() == [0, 1, 2, 0]
    for lengths in ([], [0], [3, -1]):
        with pytest.raises(ValueError):
            Packing.of_lengths(lengths)


def test_a_packing_is_a_leaf_and_can_be_copied() -> None:
    _, _, packing = packed(ids_like(BOTH), BOTH, position_ids=None)
    assert pytree.tree_map(lambda leaf: leaf, {"attention_mask": packing})["attention_mask"] is packing
    mask = packing.mask(window=2)
    assert pytree.tree_leaves([mask]) == [mask] and packing.mask(window=2) is mask
    for twin in (copy.copy(packing), copy.deepcopy(packing), pickle.loads(pickle.dumps(packing)), packing.to("cpu")):
        assert twin != packing and twin.lengths == packing.lengths and torch.equal(twin.cu_seqlens, packing.cu_seqlens)
        assert twin.mask(window=2).lengths == mask.lengths
    assert packing.to("meta").position_ids.device.type == "meta"
    assert hash(packing) != hash(copy.copy(packing)) and "3 segments, 9 tokens of [3, 5]" in repr(packing)


def test_a_packing_goes_through_wrappers_that_rebuild_dataclasses() -> None:
    """FSDP1 and DDP with mixed precision make new ones of their fields; floats are cast, here there are none."""
    from torch.distributed.utils import _apply_to_tensors

    _, _, packing = packed(ids_like(BOTH), BOTH)
    mask = packing.mask(window=2)
    cast: Any = _apply_to_tensors(
        lambda tensor: tensor.half() if tensor.is_floating_point() else tensor, [packing, mask]
    )
    for old, new in zip((packing, mask.packing), (cast[0], cast[1].packing), strict=True):
        assert new.lengths == old.lengths and new.shape == old.shape and new.indices is old.indices
        assert new.cu_seqlens is old.cu_seqlens and new.position_ids is old.position_ids
    assert (cast[1].window, cast[1].lengths) == (2, mask.lengths)


def test_a_packing_goes_through_checkpointing() -> None:
    packing = Packing.of_lengths([2, 3])
    seen = []

    def layer(states: Tensor, attention_mask: Any) -> Tensor:
        seen.append(attention_mask)
        return states.square()

    states = torch.ones(1, 5, requires_grad=True)
    checkpoint(layer, states, attention_mask=packing, use_reentrant=False).sum().backward()
    assert seen == [packing, packing]


# The cache


def test_packed_input_takes_no_cache() -> None:
    packing = Packing.of_lengths([2])
    filled = DynamicCache()
    filled.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    for asked in (None, False, True):
        assert no_cache(packing, None, asked) is False and no_cache(packing, DynamicCache(), asked) is False
        assert no_cache(None, filled, asked) is asked and no_cache(torch.ones(1, 2), filled, asked) is asked
    with pytest.raises(ValueError, match="filled past_key_values"):
        no_cache(packing, filled, True)


# Positions of a model that counts them itself


def test_own_positions_are_the_packings() -> None:
    counted = torch.arange(9)
    assert own_positions(None, counted) is counted and own_positions(torch.ones(1, 9), counted) is counted
    _, _, packing = packed(ids_like(BOTH), BOTH)
    assert own_positions(packing, counted).tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    _, _, packing = packed(ids_like(BOTH), BOTH, torch.arange(7, 12)[None])
    assert own_positions(packing, counted).tolist() == [8, 9, 10, 7, 8, 9, 10, 11, 9]
    _, _, packing = packed(ids_like(BOTH), BOTH, torch.arange(5).expand(3, 1, 5))
    with pytest.raises(ValueError, match="one position per token"):
        own_positions(packing, counted)


@pytest.mark.parametrize("rank", [0, 1])
def test_own_positions_of_a_shared_row_are_those_of_the_ranks_tokens(rank: int) -> None:
    ranks = SequenceParallel(SimpleNamespace(), rank, 2)  # type: ignore[arg-type]
    packing = replace(Packing.of_lengths([4, 3]), group=ranks)
    assert own_positions(packing, torch.arange(4)).tolist() == [[0, 1, 2, 3], [0, 1, 2, 0]][rank]


# Costs


def test_nothing_is_read_where_nothing_was_given() -> None:
    ids = ids_like([[1] * 5] * 3)
    with counted_transfers() as made:
        *_, packing = pack(Patched(), ids, None, None, None, {})
        packing.gather(ids)
        packing.scatter(torch.ones(1, 15, 2))
        assert packing.segment_ids.shape == packing.offsets.shape == (15,)
        assert packing.mask(window=3).cu_seqlens is packing.cu_seqlens
    assert made == []


def test_one_transfer_however_many_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_to_host` is the only way from the device; on the CPU it copies nothing, so the device is played."""
    from runtime.training import segments as module

    class Away(Tensor):
        transfers = 0

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda")

        def cpu(self, *args: Any, **kwargs: Any) -> Tensor:
            Away.transfers += 1
            return self.as_subclass(Tensor)

    tensors = {
        "mask": torch.tensor(BOTH, dtype=torch.bool),
        "seq_idx": torch.zeros(3, 5, dtype=torch.int32),
        "positions": torch.arange(5).expand(3, 5),
        "cu_seqlens": torch.tensor([0, 15]),
    }
    found = module._to_host({name: tensor.as_subclass(Away) for name, tensor in tensors.items()} | {"none": None})
    assert Away.transfers == 1 and found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.long()), name


@pytest.mark.parametrize(
    ("kind", "lengths", "refused"),
    [
        ("dynamic", (9, 3), False),
        ("dynamic", (12, 12), False),
        ("dynamic", (12, 11), True),
        ("longrope", (12, 11), False),
        ("longrope", (12, 9), True),
        ("default", (12, 3), False),
    ],
)
def test_no_sequence_chooses_the_frequencies_of_others(kind: str, lengths: tuple[int, ...], refused: bool) -> None:
    extra = {"original_max_position_embeddings": 9, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0} | (extra if kind == "longrope" else {})
    limit = 64 if kind == "longrope" else 9
    config = LlamaConfig(
        hidden_size=16, num_attention_heads=2, head_dim=8, max_position_embeddings=limit, rope_parameters=rope
    )
    with pytest.raises(NotImplementedError, match="above 9 the longest one") if refused else nullcontext():
        check_frequencies(config, lengths)
