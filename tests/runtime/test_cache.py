"""The position-addressed cache: against a list of what was written, and in ONNX Runtime."""

import itertools

import pytest
import torch
from onnx_harness import Session, export
from torch import Tensor, nn

from runtime.qeff.cache import QEffDynamicCache, QEffDynamicLayer

PAD = -1
HEADS, KEY_DIM, VALUE_DIM = 3, 5, 7


def states(batch: int, tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, HEADS, tokens, KEY_DIM), torch.randn(batch, HEADS, tokens, VALUE_DIM)


def at(positions: list[list[int]], **more: object) -> dict[str, object]:
    return {"position_ids": torch.tensor(positions), **more}


class Book:
    """What was written where, as a dictionary: the reference for reads."""

    def __init__(self) -> None:
        self.entries: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def write(self, key: Tensor, value: Tensor, positions: list[list[int]], rows: list[int]) -> None:
        for call_row, row in enumerate(rows):
            for token, position in enumerate(positions[call_row]):
                if position != PAD:
                    self.entries[row, position] = (key[call_row, :, token], value[call_row, :, token])

    def check(self, key: Tensor, value: Tensor, positions: list[list[int]], rows: list[int]) -> None:
        for call_row, row in enumerate(rows):
            last = max(positions[call_row])
            for slot in range(key.shape[2]):
                if slot > last:
                    assert not value[call_row, :, slot].any(), f"row {row}: value of unused slot {slot}"
                elif (row, slot) in self.entries:
                    for found, expected in zip(
                        (key[call_row, :, slot], value[call_row, :, slot]), self.entries[row, slot], strict=True
                    ):
                        assert torch.equal(found, expected), f"row {row}, slot {slot}"


@pytest.mark.parametrize("slots", [6, 8])
def test_padded_chunk_keeps_every_live_slot(slots: int) -> None:
    """[4, 5, pad, pad] after [0, 1, 2, 3]: nothing before 4 changes, even where the buffer ends at 5."""
    cache, book = QEffDynamicCache(ctx_len=slots), Book()
    for positions in ([[0, 1, 2, 3]], [[4, 5, PAD, PAD]]):
        key, value = states(1, 4)
        book.write(key, value, positions, [0])
        read = cache.update(key, value, 0, at(positions))
        book.check(*read, positions, [0])
    assert len(book.entries) == 6
    assert [tuple(part.shape) for part in read] == [(1, HEADS, slots, KEY_DIM), (1, HEADS, slots, VALUE_DIM)]


def test_rows_of_pads_change_nothing() -> None:
    cache, book = QEffDynamicCache(ctx_len=5), Book()
    key, value = states(2, 5)
    full = [[0, 1, 2, 3, 4], [0, 1, 2, PAD, PAD]]
    book.write(key, value, full, [0, 1])
    cache.update(key, value, 0, at(full))
    before = [part.clone() for part in cache[0]]
    read = cache.update(*states(2, 2), 0, at([[PAD, PAD], [PAD, PAD]]))
    assert all(torch.equal(a, b) for a, b in zip(before, cache[0], strict=True))
    assert not read[1].any()


def test_continuous_batching_uses_the_named_rows() -> None:
    cache, book = QEffDynamicCache(ctx_len=6, cache_batch_size=4), Book()
    for rows, positions in (
        ([2], [[0, 1, 2]]),
        ([0], [[0, 1, PAD]]),
        ([0, 1, 2, 3], [[2], [PAD], [3], [PAD]]),
        ([3, 2], [[0, 1], [4, 5]]),
    ):
        key, value = states(len(rows), len(positions[0]))
        book.write(key, value, positions, rows)
        read = cache.update(key, value, 0, at(positions, batch_index=torch.tensor(rows).unsqueeze(1)))
        book.check(*read, positions, rows)
    assert cache[0][0].shape == (4, HEADS, 6, KEY_DIM)
    assert not cache[0][0][1].any(), "row 1 was never written"


@pytest.mark.parametrize("limit", [4, torch.zeros(4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)])
def test_compute_context_length_shortens_the_read(limit: object) -> None:
    cache, book = QEffDynamicCache(ctx_len=9), Book()
    key, value = states(1, 3)
    book.write(key, value, [[0, 1, 2]], [0])
    read = cache.update(key, value, 0, at([[0, 1, 2]], CCL=limit))
    assert read[0].shape[2] == read[1].shape[2] == 4
    book.check(*read, [[0, 1, 2]], [0])
    assert cache.get_seq_length() == 9


def test_stale_values_are_not_read() -> None:
    """A shorter prompt in a row that a longer one used: NaN left in a value buffer must not reach the sum."""
    keys, values = torch.randn(1, HEADS, 6, KEY_DIM), torch.full((1, HEADS, 6, VALUE_DIM), float("nan"))
    cache = QEffDynamicCache.from_legacy_cache([(keys, values)])
    _, value = cache.update(*states(1, 2), 0, at([[0, 1]]))
    assert torch.isfinite(value).all()


def test_legacy_buffers_are_wrapped_and_not_mutated() -> None:
    pairs = [(torch.zeros(1, HEADS, 4, KEY_DIM), torch.zeros(1, HEADS, 4, VALUE_DIM)) for _ in range(2)]
    cache = QEffDynamicCache.from_legacy_cache(pairs)
    assert QEffDynamicCache.from_legacy_cache(cache) is cache
    assert [[part is given for part, given in zip(*both, strict=True)] for both in zip(cache, pairs, strict=True)] == [
        [True, True],
        [True, True],
    ]
    assert cache.to_legacy_cache()[1][0] is pairs[1][0]
    cache.update(*states(1, 1), 1, at([[2]]))
    assert not pairs[1][0].any() and cache[1][0].any()
    assert len(cache) == 2 and cache.get_seq_length() == 4 and cache.get_mask_sizes(1, 0) == (4, 0)
    assert not cache.is_compileable


def test_write_and_read_halves() -> None:
    cache = QEffDynamicCache(ctx_len=4)
    key, value = states(1, 2)
    assert cache.write_only(key, value, 0, at([[0, 1]])) is None
    read_key, read_value = cache.read_only(0, at([[1]]))
    assert torch.equal(read_key[:, :, :2], key) and torch.equal(read_value[:, :, :2], value)
    assert not read_value[:, :, 2:].any()


def test_length_is_known_before_the_buffers() -> None:
    assert QEffDynamicCache(ctx_len=17).get_seq_length() == 17
    assert QEffDynamicLayer(ctx_len=3).get_seq_length() == 3


def test_an_updated_position_tensor_is_looked_at_again() -> None:
    """Decoding loops add one to their position ids in place."""
    cache, position_ids = QEffDynamicCache(ctx_len=4), torch.tensor([[0]])
    for step in range(4):
        key, value = states(1, 1)
        _, read = cache.update(key, value, 0, {"position_ids": position_ids})
        assert torch.equal(read[:, :, step : step + 1], value) and not read[:, :, step + 1 :].any()
        position_ids += 1


ERRORS = {
    "no cache": (ValueError, "past_key_values is required", lambda: QEffDynamicCache.from_legacy_cache(None)),
    "other cache": (TypeError, "found dict", lambda: QEffDynamicCache.from_legacy_cache({})),
    "one tensor": (TypeError, "found Tensor", lambda: QEffDynamicCache.from_legacy_cache(torch.zeros(2, 1, 1, 1, 1))),
    "no layer": (ValueError, "empty", lambda: QEffDynamicCache.from_legacy_cache([])),
    "no pair": (ValueError, "pair", lambda: QEffDynamicCache.from_legacy_cache([torch.zeros(1, 1, 1, 1)])),
    "3-D": (ValueError, "ctx_len", lambda: QEffDynamicCache.from_legacy_cache([(torch.zeros(1, 1, 1),) * 2])),
    "no length": (ValueError, "ctx_len", lambda: QEffDynamicCache().get_seq_length()),
    "no positions": (ValueError, "position_ids", lambda: QEffDynamicCache(ctx_len=4).update(*states(1, 1), 0, {})),
    "no arguments": (ValueError, "position_ids", lambda: QEffDynamicCache(ctx_len=4).update(*states(1, 1), 0)),
    "past the end": (
        IndexError,
        "position 4",
        lambda: QEffDynamicCache(ctx_len=4).update(*states(1, 1), 0, at([[4]])),
    ),
    "past the compute length": (
        IndexError,
        "compute context length 2",
        lambda: QEffDynamicCache(ctx_len=4).update(*states(1, 1), 0, at([[3]], CCL=2)),
    ),
    "compute length past the end": (
        ValueError,
        "compute context length 5",
        lambda: QEffDynamicCache(ctx_len=4).update(*states(1, 1), 0, at([[3]], CCL=5)),
    ),
    "positions of another shape": (
        ValueError,
        "does not fit",
        lambda: QEffDynamicCache(ctx_len=4).update(*states(2, 1), 0, at([[0]])),
    ),
    "missing layer": (
        ValueError,
        "layer 1",
        lambda: QEffDynamicCache.from_legacy_cache([states(1, 4)]).update(*states(1, 1), 1, at([[0]])),
    ),
    "other dtype": (
        TypeError,
        "float16",
        lambda: QEffDynamicCache.from_legacy_cache([tuple(part.half() for part in states(1, 4))]).update(
            *states(1, 1), 0, at([[0]])
        ),
    ),
    "other batch": (
        ValueError,
        "batch_index",
        lambda: QEffDynamicCache.from_legacy_cache([states(2, 4)]).update(*states(1, 1), 0, at([[0]])),
    ),
    "other heads": (
        ValueError,
        "heads",
        lambda: QEffDynamicCache.from_legacy_cache([(torch.zeros(1, 2, 4, KEY_DIM),) * 2]).update(
            *states(1, 1), 0, at([[0]])
        ),
    ),
    "never written": (ValueError, "no buffers", lambda: QEffDynamicLayer(ctx_len=4).buffers()),
}


@pytest.mark.parametrize("error, message, action", ERRORS.values(), ids=ERRORS.keys())
def test_what_cannot_be_honoured_is_an_error(error: type[Exception], message: str, action: object) -> None:
    with pytest.raises(error, match=message):
        action()  # type: ignore[operator]


class TwoLayers(nn.Module):
    """Two layers' updates from buffers that come and go as graph inputs and outputs."""

    def forward(
        self,
        key: Tensor,
        value: Tensor,
        position_ids: Tensor,
        past: tuple[tuple[Tensor, Tensor], ...],
        batch_index: Tensor | None = None,
        comp_ctx_lengths: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        cache = QEffDynamicCache.from_legacy_cache(past)
        arguments = {"position_ids": position_ids, "batch_index": batch_index, "CCL": comp_ctx_lengths}
        reads = [cache.update(key * (layer + 1), value - layer, layer, arguments) for layer in range(2)]
        return tuple(itertools.chain(*reads, *cache.to_legacy_cache()))


PAST = ["past_key.0", "past_value.0", "past_key.1", "past_value.1"]


def exported(continuous: bool, limited: bool, opset: int) -> tuple[Session, list[str]]:
    rows, batch = (4, 2) if continuous else (2, 2)
    key, value = states(batch, 3)
    past = tuple((torch.zeros(rows, HEADS, 9, KEY_DIM), torch.zeros(rows, HEADS, 9, VALUE_DIM)) for _ in range(2))
    names = ["key", "value", "position_ids", *PAST]
    axes = {
        "key": {0: "batch", 2: "seq"},
        "value": {0: "batch", 2: "seq"},
        "position_ids": {0: "batch", 1: "seq"},
        **{name: {0: "rows" if continuous else "batch", 2: "ctx"} for name in PAST},
        "batch_index": {0: "batch"},
        "comp_ctx_lengths": {0: "ccl"},
    }
    batch_index = torch.tensor([[1], [3]]) if continuous else None
    limit = torch.zeros(5, dtype=torch.int64) if limited else None
    names += ["batch_index"] * continuous + ["comp_ctx_lengths"] * limited
    arguments = (key, value, torch.tensor([[0, 1, 2], [3, 4, PAD]]), past, batch_index, limit)
    outputs = ["k0", "v0", "k1", "v1", *(f"{name}_RetainedState" for name in PAST)]
    model = export(TwoLayers(), arguments, names, outputs, axes, opset)
    counts = [sum(node.op_type.startswith(kind) for node in model.graph.node) for kind in ("CtxScatter", "CtxGather")]
    assert counts == [4, 4]
    assert len([node for node in model.graph.node if node.op_type == "Range"]) == 1, "layers share what they read"
    for node in model.graph.node:
        if node.op_type.startswith("CtxScatter"):
            assert node.output[0].endswith("_RetainedState"), "a scatter's output is the retained state itself"
    return Session(model), names


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("limited", [False, True], ids=["whole", "ccl"])
@pytest.mark.parametrize("continuous", [False, True], ids=["batch", "cb"])
def test_one_graph_serves_other_sizes(continuous: bool, limited: bool, opset: int) -> None:
    session, names = exported(continuous, limited, opset)
    for slots, positions in (
        (6, [[4, 5, PAD, PAD]]),
        (8, [[4, 5, PAD, PAD]]),
        (8, [[4, 5, PAD, PAD], [PAD] * 4]),
        (12, [[11], [PAD], [0]]),
        (5, [[PAD] * 2] * 2),
        (4, [[0, 1, 2, 3]]),
    ):
        batch, tokens = len(positions), len(positions[0])
        rows = 5 if continuous else batch
        key, value = states(batch, tokens)
        past = tuple(states(rows, slots) for _ in range(2))
        batch_index = torch.randperm(rows)[:batch].unsqueeze(1) if continuous else None
        limit = torch.zeros(slots - (slots == 8), dtype=torch.int64) if limited else None
        position_ids = torch.tensor(positions)
        expected = TwoLayers()(key, value, position_ids, past, batch_index, limit)
        tensors = dict(zip(PAST, itertools.chain(*past), strict=True))
        tensors.update(key=key, value=value, position_ids=position_ids)
        if batch_index is not None:
            tensors["batch_index"] = batch_index
        if limit is not None:
            tensors["comp_ctx_lengths"] = limit
        assert set(tensors) == set(names)
        for found, wanted in zip(session(**tensors), expected, strict=True):
            assert torch.equal(found, wanted)
