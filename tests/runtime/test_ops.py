"""The custom operators: pads write nothing, in torch and in ONNX Runtime, for sizes other than the traced ones."""

import itertools

import pytest
import torch
from onnx_harness import Session, export
from torch import Tensor, nn

from runtime.qeff import ops
from runtime.qeff.onnx_functions import functions, supported_opsets

PAD = -1


def written_by_hand(data: Tensor, rows: list[int], position_ids: Tensor, updates: Tensor) -> Tensor:
    """What a scatter must give, one slot at a time."""
    expected = data.clone()
    for row, (slots, states) in zip(rows, zip(position_ids.tolist(), updates.unbind(0), strict=True), strict=True):
        for token, slot in enumerate(slots):
            if slot != PAD:
                expected[row, :, slot] = states[:, token]
    return expected


# slots, positions of each row: [4, 5, pad, pad] on a buffer that ends at 5 and on a longer one, rows and whole calls of
# pads, a full buffer, one token, and pads before live tokens.
SCATTERS = {
    "pads-after-the-last-slot": (6, [[4, 5, PAD, PAD]]),
    "pads-with-room": (8, [[4, 5, PAD, PAD]]),
    "row-of-pads": (8, [[4, 5, PAD, PAD], [PAD] * 4, [0, 1, 2, PAD]]),
    "all-pads": (8, [[PAD] * 3, [PAD] * 3]),
    "full": (4, [[0, 1, 2, 3], [3, 2, 1, 0]]),
    "one-token": (12, [[11], [PAD], [0]]),
    "pads-first": (7, [[PAD, PAD, 3], [PAD, 0, 6]]),
}


class Scatter(nn.Module):
    def forward(self, data: Tensor, position_ids: Tensor, updates: Tensor) -> Tensor:
        return ops.ctx_scatter(data, position_ids, updates)


class ScatterCB(nn.Module):
    def forward(self, data: Tensor, batch_index: Tensor, position_ids: Tensor, updates: Tensor) -> Tensor:
        return ops.ctx_scatter_cb(data, batch_index, position_ids, updates)


class Gather(nn.Module):
    def forward(self, data: Tensor, ctx_indices: Tensor) -> Tensor:
        return ops.ctx_gather(data, ctx_indices)


class GatherCB(nn.Module):
    def forward(self, data: Tensor, batch_index: Tensor, ctx_indices: Tensor) -> Tensor:
        return ops.ctx_gather_cb(data, batch_index, ctx_indices)


class Norm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return ops.rms_norm(hidden_states, self.weight, 1e-5)


AXES = {
    "data": {0: "full_batch", 2: "ctx_len"},
    "batch_index": {0: "batch"},
    "position_ids": {0: "batch", 1: "seq_len"},
    "updates": {0: "batch", 2: "seq_len"},
    "ctx_indices": {0: "batch", 2: "length"},
}
HEADS, HEAD_DIM = 3, 5


@pytest.fixture(scope="module", params=supported_opsets())
def sessions(request: pytest.FixtureRequest) -> dict[str, Session]:
    """One session per operator, traced with 2 rows of 3 tokens and 9 slots."""
    data, updates = torch.randn(4, HEADS, 9, HEAD_DIM), torch.randn(2, HEADS, 3, HEAD_DIM)
    positions, rows = torch.tensor([[0, 1, 2], [3, 4, PAD]]), torch.tensor([[1], [3]])
    indices = torch.zeros(2, 1, 6, dtype=torch.int64)
    plain = {**AXES, "data": {0: "batch", 2: "ctx_len"}}
    cases = {
        "CtxScatter": (Scatter(), plain, {"data": data[:2], "position_ids": positions, "updates": updates}),
        "CtxScatterCB": (
            ScatterCB(),
            AXES,
            {"data": data, "batch_index": rows, "position_ids": positions, "updates": updates},
        ),
        "CtxGather": (Gather(), plain, {"data": data[:2], "ctx_indices": indices}),
        "CtxGatherCB": (GatherCB(), AXES, {"data": data, "batch_index": rows, "ctx_indices": indices}),
    }
    made = {}
    for name, (module, axes, arguments) in cases.items():
        model = export(module, list(arguments.values()), list(arguments), ["out"], axes, request.param)
        (node,) = [node for node in model.graph.node if node.op_type.startswith("Ctx")]
        assert (node.domain, node.op_type) == ("com.qualcomm.cloud", name)
        assert list(node.input)[: len(arguments)] == list(arguments)
        (function,) = model.functions
        assert (function.domain, function.name) == ("com.qualcomm.cloud", name)
        assert {(entry.domain, entry.version) for entry in function.opset_import} == {("", request.param)}
        imports = {entry.domain: entry.version for entry in model.opset_import}
        assert imports == {"": request.param, "com.qualcomm.cloud": 1}
        made[name] = Session(model)
    return made


@pytest.mark.parametrize("slots, positions", SCATTERS.values(), ids=SCATTERS.keys())
def test_scatter_writes_live_tokens_only(sessions: dict[str, Session], slots: int, positions: list[list[int]]) -> None:
    position_ids = torch.tensor(positions)
    data = torch.randn(len(positions), HEADS, slots, HEAD_DIM)
    updates = torch.randn(len(positions), HEADS, position_ids.shape[1], HEAD_DIM)
    expected = written_by_hand(data, list(range(len(positions))), position_ids, updates)
    before = data.clone()
    assert torch.equal(ops.ctx_scatter(data, position_ids, updates), expected)
    assert torch.equal(data, before), "the caller's buffer changed"
    (found,) = sessions["CtxScatter"](data=data, position_ids=position_ids, updates=updates)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("slots, positions", SCATTERS.values(), ids=SCATTERS.keys())
def test_scatter_cb_writes_the_named_rows(sessions: dict[str, Session], slots: int, positions: list[list[int]]) -> None:
    position_ids = torch.tensor(positions)
    data = torch.randn(5, HEADS, slots, HEAD_DIM)
    updates = torch.randn(len(positions), HEADS, position_ids.shape[1], HEAD_DIM)
    for rows in itertools.islice(itertools.permutations(range(5), len(positions)), 7):
        expected = written_by_hand(data, list(rows), position_ids, updates)
        batch_index = torch.tensor(rows).unsqueeze(1)
        assert torch.equal(ops.ctx_scatter_cb(data, batch_index, position_ids, updates), expected)
        (found,) = sessions["CtxScatterCB"](
            data=data, batch_index=batch_index, position_ids=position_ids, updates=updates
        )
        assert torch.equal(found, expected)


def test_scatter_cb_idle_row_may_name_a_busy_row(sessions: dict[str, Session]) -> None:
    """A row of pads must not bring back what slot 0 held while another row of the call writes it."""
    data, updates = torch.randn(4, HEADS, 6, HEAD_DIM), torch.randn(2, HEADS, 2, HEAD_DIM)
    batch_index, position_ids = torch.tensor([[2], [2]]), torch.tensor([[PAD, PAD], [0, 1]])
    expected = written_by_hand(data, [2, 2], position_ids, updates)
    (found,) = sessions["CtxScatterCB"](data=data, batch_index=batch_index, position_ids=position_ids, updates=updates)
    assert torch.equal(found, expected)
    assert torch.equal(ops.ctx_scatter_cb(data, batch_index, position_ids, updates), expected)


def test_gather_reads_the_slots_asked_for(sessions: dict[str, Session]) -> None:
    data = torch.randn(3, HEADS, 11, HEAD_DIM)
    indices = torch.tensor([[[0, 10, 3, 3]], [[1, 0, 0, 9]], [[5, 6, 7, 8]]])
    expected = torch.stack([data[row][:, indices[row, 0]] for row in range(3)])
    assert torch.equal(ops.ctx_gather(data, indices), expected)
    assert torch.equal(sessions["CtxGather"](data=data, ctx_indices=indices)[0], expected)
    rows = torch.tensor([[2], [0], [2]])
    expected = torch.stack([data[int(rows[row])][:, indices[row, 0]] for row in range(3)])
    assert torch.equal(ops.ctx_gather_cb(data, rows, indices), expected)
    assert torch.equal(sessions["CtxGatherCB"](data=data, batch_index=rows, ctx_indices=indices)[0], expected)


def test_position_outside_the_buffer_is_an_error() -> None:
    data, updates = torch.zeros(1, HEADS, 4, HEAD_DIM), torch.zeros(1, HEADS, 1, HEAD_DIM)
    with pytest.raises(IndexError):
        ops.ctx_scatter(data, torch.tensor([[4]]), updates)


@pytest.mark.parametrize("opset", supported_opsets())
def test_norm_exports_as_one_operator(opset: int) -> None:
    module = Norm(12)
    model = export(module, [torch.randn(2, 3, 12)], ["hidden"], ["out"], {"hidden": {0: "batch", 1: "seq"}}, opset)
    (node,) = model.graph.node
    assert (node.domain, node.op_type) == ("com.qti.aisw.onnx", "CustomRMSNorm")
    assert {attribute.name: pytest.approx(attribute.f) for attribute in node.attribute} == {"epsilon": 1e-5}
    assert list(node.input) == ["hidden", "weight"]
    hidden = torch.randn(5, 7, 12) * 4
    (found,) = Session(model)(hidden=hidden)
    expected = hidden / (hidden.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * module.weight.detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_half_precision_norm_keeps_its_dtype_in_onnx() -> None:
    module = Norm(64).half()
    model = export(module, [torch.randn(2, 3, 64).half()], ["hidden"], ["out"], {"hidden": {0: "batch", 1: "seq"}})
    hidden = (torch.randn(4, 5, 64) * 4).half()
    (found,) = Session(model)(hidden=hidden)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, module(hidden).detach(), rtol=2e-3, atol=2e-3)


def test_norm_of_mixed_dtypes_is_refused_at_export() -> None:
    with pytest.raises(ValueError, match="one dtype"):
        export(Norm(8), [torch.randn(1, 2, 8).half()], ["hidden"], ["out"], {})


def test_unknown_opset_is_an_error() -> None:
    with pytest.raises(ValueError, match="opset 16"):
        functions(16)
