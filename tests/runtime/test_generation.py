"""The step loop, with a runner that knows nothing but what it was fed."""

import pytest
import torch

from runtime.qeff.generation import Prompts, RopeLengths, check_lengths, generate_greedy, prefill_chunks

VOCAB = 50


class RecordingRunner:
    """Remembers every token by row and position, and predicts (last token + 1); all-pad rows get misleading logits."""

    def __init__(self, rows: int) -> None:
        self.slots: list[dict[int, int]] = [{} for _ in range(rows)]
        self.fed: list[list[list[int]]] = []

    def step(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        assert input_ids.shape == position_ids.shape
        self.fed.append(position_ids.tolist())
        logits = torch.zeros(len(input_ids), VOCAB)
        for row, (tokens, positions) in enumerate(zip(input_ids.tolist(), position_ids.tolist(), strict=True)):
            for token, position in zip(tokens, positions, strict=True):
                if position >= 0:
                    self.slots[row][position] = token
            last = max(positions)
            predicted = (self.slots[row][last] + 1) % VOCAB if last >= 0 else 0
            logits[row, predicted] = 1.0
        return logits


def rows_of(*lengths: int) -> Prompts:
    return Prompts(tuple(torch.arange(10 * i, 10 * i + length) for i, length in enumerate(lengths)))


def run(prompts: Prompts, runner: RecordingRunner, *, new: int, width: int, rope: RopeLengths) -> list[list[int]]:
    steps = list(generate_greedy(runner, prompts, generation_len=new, prefill_seq_len=width, rope=rope))
    assert len(steps) == new
    for tokens, logits in steps:
        assert torch.equal(tokens, logits.argmax(-1))
    return torch.stack([tokens for tokens, _ in steps], dim=1).tolist()


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 32])
def test_rows_keep_the_logits_of_their_own_last_chunk(width: int) -> None:
    prompts = rows_of(2, 7, 4)
    runner = RecordingRunner(3)
    tokens = run(prompts, runner, new=3, width=width, rope=RopeLengths())
    assert tokens == [[2, 3, 4], [17, 18, 19], [24, 25, 26]]
    # every prompt token and every generated one but the last sits at its position
    assert [[slots[p] for p in sorted(slots)] for slots in runner.slots] == [
        [0, 1, 2, 3],
        [10, 11, 12, 13, 14, 15, 16, 17, 18],
        [20, 21, 22, 23, 24, 25],
    ]
    assert all(len(row) == width for step in runner.fed[:-2] for row in step)
    assert all(len(row) == 1 for step in runner.fed[-2:] for row in step)


def test_prefill_chunks_pad_with_minus_one() -> None:
    chunks = list(prefill_chunks(rows_of(2, 5).rows, 3))
    assert [chunk.position_ids.tolist() for chunk in chunks] == [[[0, 1, -1], [0, 1, 2]], [[-1, -1, -1], [3, 4, -1]]]
    assert all(chunk.input_ids.dtype == chunk.position_ids.dtype == torch.int64 for chunk in chunks)


def test_a_prompt_past_the_length_of_change_is_prefilled_at_once() -> None:
    runner = RecordingRunner(2)
    run(rows_of(2, 7), runner, new=1, width=2, rope=RopeLengths(changes_above=6))
    assert runner.fed == [[[0, 1, -1, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6]]]
    runner = RecordingRunner(2)
    run(rows_of(2, 6), runner, new=1, width=2, rope=RopeLengths(changes_above=6))
    assert len(runner.fed) == 3


def test_recompute_feeds_a_row_again_when_it_passes_the_length_of_change() -> None:
    rope = RopeLengths(changes_above=4, recompute=True)
    runner = RecordingRunner(3)
    tokens = run(rows_of(2, 4, 6), runner, new=4, width=8, rope=rope)
    assert tokens == [[2, 3, 4, 5], [14, 15, 16, 17], [26, 27, 28, 29]]
    assert runner.fed[1:] == [
        [[2, -1, -1, -1, -1], [0, 1, 2, 3, 4], [6, -1, -1, -1, -1]],  # the second row grows to 5
        [[3], [5], [7]],
        [[0, 1, 2, 3, 4], [6, -1, -1, -1, -1], [8, -1, -1, -1, -1]],  # now the first one does
    ]
    runner = RecordingRunner(1)
    run(rows_of(4), runner, new=3, width=8, rope=RopeLengths(changes_above=4, recompute=False))
    assert runner.fed[1:] == [[[4]], [[5]]]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([[0, 0, 1, 1], [1, 1, 1, 1]], [[3, 4], [5, 6, 7, 8]]),
        ([[1, 0, 0, 0], [0, 1, 1, 0]], [[1], [6, 7]]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.uint8])
def test_prompts_are_the_tokens_under_the_mask(
    mask: list[list[int]], expected: list[list[int]], dtype: torch.dtype
) -> None:
    input_ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=torch.int32)
    prompts = Prompts.from_padded(input_ids, torch.tensor(mask).to(dtype), vocab_size=10)
    assert [row.tolist() for row in prompts.rows] == expected
    assert all(row.dtype == torch.int64 for row in prompts.rows)


@pytest.mark.parametrize(
    ("input_ids", "mask", "error", "text"),
    [
        ([[1, 2]], None, TypeError, "torch.Tensor"),
        (torch.tensor([[1.0, 2.0]]), None, TypeError, "float32"),
        (torch.tensor([[True]]), None, TypeError, "bool"),
        (torch.tensor([1, 2]), None, ValueError, "unsqueeze"),
        (torch.zeros(2, 0, dtype=torch.int64), None, ValueError, "empty"),
        (torch.zeros(0, 3, dtype=torch.int64), None, ValueError, "empty"),
        (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 1], [0, 0]]), ValueError, "row 1 has an empty prompt"),
        (torch.tensor([[1, 2, 3]]), torch.tensor([[1, 0, 1]]), ValueError, "hole"),
        (torch.tensor([[1, 2, 3]]), torch.tensor([[1, 1]]), ValueError, "shape"),
        (torch.tensor([[1, 2, 3]]), torch.tensor([[1, 2, 1]]), ValueError, "only hold 0"),
        (torch.tensor([[1, 2]]), torch.tensor([[1.0, 1.0]]), TypeError, "attention_mask"),
        (torch.tensor([[1, 2]]), [[1, 1]], TypeError, "attention_mask"),
        (torch.tensor([[1, 10]]), None, ValueError, r"input_ids\[0, 1\] is 10, outside the vocabulary of 10"),
        (torch.tensor([[0, -1]]), torch.tensor([[0, 1]]), ValueError, r"input_ids\[0, 1\] is -1"),
    ],
)
def test_wrong_prompts_are_refused(input_ids: object, mask: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Prompts.from_padded(input_ids, mask, vocab_size=10)  # type: ignore[arg-type]


def test_padding_may_hold_any_id() -> None:
    prompts = Prompts.from_padded(torch.tensor([[-100, 3]]), torch.tensor([[0, 1]]), vocab_size=10)
    assert prompts.rows[0].tolist() == [3]


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"generation_len": 0}, ValueError, "generation_len must be at least 1"),
        ({"prefill_seq_len": 0}, ValueError, "prefill_seq_len must be at least 1"),
        ({"generation_len": 2.0}, TypeError, "generation_len must be an int"),
        ({"prefill_seq_len": True}, TypeError, "prefill_seq_len must be an int"),
        ({"ctx_len": 10}, ValueError, "11 KV slots are needed"),
        ({"ctx_len": 30, "generation_len": 15}, ValueError, "tables end after 20 positions.*max_seq_len_cached>=21"),
    ],
)
def test_wrong_lengths_are_refused(changed: dict[str, int], error: type[Exception], text: str) -> None:
    good = {"generation_len": 5, "prefill_seq_len": 4, "ctx_len": 11}
    check_lengths(rows_of(3, 7), **good, rope=RopeLengths(rows=20))
    with pytest.raises(error, match=text):
        check_lengths(rows_of(3, 7), **{**good, **changed}, rope=RopeLengths(rows=20))
