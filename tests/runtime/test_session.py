"""The ONNX Runtime session: buffers that stay, and errors that say what is wrong."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from upstream_reference import build

from runtime.qeff import QEFFAutoModelForCausalLM
from runtime.qeff.cache import QEffDynamicCache
from runtime.qeff.session import QEffOrtSession


@pytest.fixture(scope="module")
def model() -> Any:
    return QEFFAutoModelForCausalLM(build("gemma2")).model


@pytest.fixture(scope="module")
def path(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return QEFFAutoModelForCausalLM(model).export(tmp_path_factory.mktemp("session") / "m")


@pytest.fixture
def session(path: Path) -> QEffOrtSession:
    return QEffOrtSession(path, threads=1)


def steps() -> list[dict[str, torch.Tensor]]:
    """A chunk with padding, a second chunk that only one row has, and decode steps."""
    generator = torch.Generator().manual_seed(0)
    positions = [
        [[0, 1, 2, 3], [0, 1, -1, -1]],
        [[4, 5, 6, -1], [-1, -1, -1, -1]],
        [[7], [2]],
        [[8], [3]],
        [[9], [-1]],
    ]
    return [
        {"input_ids": torch.randint(97, torch.tensor(p).shape, generator=generator), "position_ids": torch.tensor(p)}
        for p in positions
    ]


def live(inputs: dict[str, torch.Tensor]) -> np.ndarray[Any, Any]:
    return (inputs["position_ids"].amax(1) >= 0).numpy()


@pytest.mark.parametrize("in_place", [True, False])
def test_steps_and_buffers_equal_eager(session: QEffOrtSession, model: Any, in_place: bool) -> None:
    assert session.metadata.kv_in_place
    session.metadata = dataclasses.replace(session.metadata, kv_in_place=in_place)
    session.start(2, 10)
    past: Any = QEffDynamicCache(ctx_len=10)
    for inputs in steps():
        logits = session.run(inputs)
        with torch.no_grad():
            out = model(**inputs, past_key_values=past, use_cache=True)
        past = out.past_key_values
        np.testing.assert_allclose(logits[live(inputs)], out.logits[:, 0].numpy()[live(inputs)], rtol=0, atol=2e-5)
        buffers = session.buffers()
        for layer, pair in enumerate(past):
            for name, tensor in zip((f"past_key.{layer}", f"past_value.{layer}"), pair, strict=True):
                np.testing.assert_allclose(buffers[name], tensor.numpy(), rtol=0, atol=2e-5)
    assert np.abs(session.buffers()["past_key.2"][0, :, 9]).max() > 0  # the last slot is in use
    assert np.abs(session.buffers()["past_key.2"][1, :, 4:]).max() == 0  # padding wrote nothing


def test_buffers_are_bound_not_copied(session: QEffOrtSession) -> None:
    session.start(2, 10)
    addresses = {name: buffer.data_ptr() for name, buffer in session._inputs.items()}
    for inputs in steps():
        session.run(inputs)
    assert {name: buffer.data_ptr() for name, buffer in session._inputs.items()} == addresses


def test_start_forgets(session: QEffOrtSession) -> None:
    session.start(2, 10)
    first = [session.run(inputs) for inputs in steps()]
    session.start(2, 12)
    second = [session.run(inputs) for inputs in steps()]
    for a, b, inputs in zip(first, second, steps(), strict=True):
        np.testing.assert_allclose(a[live(inputs)], b[live(inputs)], rtol=0, atol=1e-5)


def test_logits_of_a_step_stay_after_the_next(session: QEffOrtSession) -> None:
    session.start(2, 10)
    first = session.run(steps()[0])
    kept = first.copy()
    session.run(steps()[1])
    np.testing.assert_array_equal(first, kept)


GOOD = {"input_ids": torch.tensor([[1], [2]]), "position_ids": torch.tensor([[0], [0]])}


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ({"input_ids": GOOD["input_ids"]}, ValueError, "missing: position_ids"),
        ({**GOOD, "attention_mask": GOOD["input_ids"]}, ValueError, "unknown: attention_mask"),
        ({**GOOD, "input_ids": GOOD["input_ids"].int()}, TypeError, "input_ids must be int64, got int32"),
        ({**GOOD, "input_ids": [[1], [2]]}, TypeError, "input_ids must be a torch.Tensor"),
        (
            {**GOOD, "position_ids": torch.tensor([[0, 1], [0, 1]])},
            ValueError,
            r"position_ids must have shape \[2, 1\]",
        ),
        ({**GOOD, "input_ids": torch.tensor([1, 2])}, ValueError, r"input_ids must be \[batch, seq_len\]"),
        ({name: value[:1] for name, value in GOOD.items()}, ValueError, "started with 2"),
        ({**GOOD, "position_ids": torch.tensor([[10], [0]])}, IndexError, r"\[-1, 10\)"),
        ({**GOOD, "position_ids": torch.tensor([[-2], [0]])}, IndexError, r"\[-1, 10\)"),
    ],
)
def test_wrong_steps(session: QEffOrtSession, inputs: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(RuntimeError, match="start"):
        session.run(GOOD)
    session.start(2, 10)
    session.run(GOOD)
    with pytest.raises(error, match=text):
        session.run(inputs)


def test_wrong_continuous_batching_steps(tmp_path: Path) -> None:
    qeff = QEFFAutoModelForCausalLM(build("llama"), continuous_batching=True, qaic_config={"ccl_enabled": True})
    session = QEffOrtSession(qeff.export(tmp_path / "m"), threads=1)
    session.start(4, 10)
    good = {**GOOD, "batch_index": torch.tensor([[3], [1]]), "comp_ctx_lengths": torch.zeros(8, dtype=torch.int64)}
    session.run(good)
    written = np.abs(session.buffers()["past_key.0"]).max(axis=(1, 2, 3)) > 0
    assert written.tolist() == [False, True, False, True]
    with pytest.raises(IndexError, match="batch_index"):
        session.run({**good, "batch_index": torch.tensor([[4], [1]])})
    with pytest.raises(ValueError, match="batch_index must have shape"):
        session.run({**good, "batch_index": torch.tensor([3, 1])})
    for length in (11, 3):  # longer than the buffers; shorter than what the step must see
        with pytest.raises(ValueError, match="comp_ctx_lengths"):
            session.run(
                {
                    **good,
                    "position_ids": torch.tensor([[3], [0]]),
                    "comp_ctx_lengths": torch.zeros(length, dtype=torch.int64),
                }
            )


def test_wrong_files(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported model"):
        QEffOrtSession(tmp_path / "missing.onnx")
    junk = tmp_path / "junk.onnx"
    junk.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot load"):
        QEffOrtSession(junk)
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="not exported by"):
        QEffOrtSession(tmp_path / "foreign.onnx")


def test_wrong_start(session: QEffOrtSession) -> None:
    for rows, ctx_len in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match="at least one"):
            session.start(rows, ctx_len)
