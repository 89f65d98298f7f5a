"""An ONNX Runtime session for an exported file, with KV buffers that stay where they are.

A naive ``session.run`` copies the whole cache in and out at every step. Here inputs and outputs are bound to buffers of
the session: where the file says that an updated buffer may lie in its input's memory (`GraphMetadata.kv_in_place`),
one buffer per state is bound to both sides and a step writes the new rows only; otherwise two buffers take turns.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from runtime.qeff.export import METADATA_KEY, GraphMetadata

_Array = np.ndarray[Any, Any]

_NUMPY_DTYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64}
_INTEGER_INPUTS = ("input_ids", "position_ids", "comp_ctx_lengths", "batch_index")


class QEffOrtSession:
    """Runs one exported file on the CPU; `start` allocates KV buffers, `run` does one step with them.

    `threads` is ONNX Runtime's intra-op thread count; None leaves the choice to ONNX Runtime. Raises FileNotFoundError
    where there is no file, ValueError for a file that ONNX Runtime cannot load (not ONNX, damaged, or of a dtype that
    it has no CPU kernels for, as bfloat16) and for one that `runtime.qeff` did not export, or another version did.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no exported model at {self.path}")
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise ValueError(
                f"ONNX Runtime cannot load {self.path}: {error}\nIf it misses an implementation, the model's dtype has "
                "no CPU kernels (bfloat16 has not): load the model with dtype=torch.float32 and export it again"
            ) from error
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ValueError(f"{self.path} was not exported by runtime.qeff: it has no metadata {METADATA_KEY!r}")
        self.metadata = GraphMetadata.from_json(text)
        names = [value.name for value in self._session.get_inputs()], [v.name for v in self._session.get_outputs()]
        if names != (self.metadata.input_names, self.metadata.output_names):
            raise ValueError(f"{self.path} does not have the inputs and outputs that its metadata states: {names}")
        self._inputs: dict[str, Any] = {}
        self._outputs: dict[str, Any] = {}
        self._rows = self._ctx_len = 0

    def start(self, rows: int, ctx_len: int) -> None:
        """Allocate zeroed KV buffers of `rows` rows (the batch, or the full batch under continuous batching).

        Raises ValueError for sizes below 1.
        """
        if rows < 1 or ctx_len < 1:
            raise ValueError(f"KV buffers need at least one row and one slot, got rows={rows}, ctx_len={ctx_len}")
        self._rows, self._ctx_len = rows, ctx_len
        self._inputs, self._outputs = {}, {}
        for layer in self.metadata.layers:
            for name, shape in zip(layer.names, layer.shapes(rows, ctx_len), strict=True):
                self._inputs[name] = _zeros(shape, layer.dtype)
                self._outputs[name] = self._inputs[name] if self.metadata.kv_in_place else _zeros(shape, layer.dtype)

    def run(self, inputs: Mapping[str, torch.Tensor | _Array]) -> _Array:
        """One step: every input that is no KV buffer by name, int64 -> logits float32 `[batch, vocab]`.

        `input_ids`, `position_ids` `[batch, seq_len]` (-1 is padding), and where the file has them `comp_ctx_lengths`
        `[L]` and `batch_index` `[batch, 1]`. The KV buffers advance. Raises RuntimeError before `start` and where
        ONNX Runtime fails (as on a position that a table of the model's own does not have), ValueError for
        missing or unknown names and wrong shapes, TypeError for wrong dtypes, IndexError for positions and rows that
        lie outside the buffers.
        """
        if not self._inputs:
            raise RuntimeError("call start(rows, ctx_len) before run()")
        binding = self._session.io_binding()
        arrays = self._checked(inputs)
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits")
        for name, buffer in self._inputs.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(f"{name}_RetainedState", self._outputs[name])
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions have no public base class
            raise RuntimeError(
                f"ONNX Runtime failed on a step of positions {arrays['position_ids'].min()} to "
                f"{arrays['position_ids'].max()} with {self._ctx_len} slots: {error}"
            ) from error
        self._inputs, self._outputs = self._outputs, self._inputs
        logits: _Array = binding.get_outputs()[0].numpy()
        return logits[:, 0].copy()

    def buffers(self) -> dict[str, _Array]:
        """Copies of the KV buffers as they are now, by input name."""
        return {name: buffer.numpy().copy() for name, buffer in self._inputs.items()}

    def _checked(self, inputs: Mapping[str, torch.Tensor | _Array]) -> dict[str, _Array]:
        expected = [name for name in self.metadata.input_names if name in _INTEGER_INPUTS]
        if set(inputs) != set(expected):
            missing, unknown = set(expected) - set(inputs), set(inputs) - set(expected)
            raise ValueError(
                f"run() takes exactly {', '.join(expected)}"
                + (f"; missing: {', '.join(sorted(missing))}" if missing else "")
                + (f"; unknown: {', '.join(sorted(unknown))}" if unknown else "")
            )
        arrays = {name: _int64(name, inputs[name]) for name in expected}
        shape = arrays["input_ids"].shape
        batch = shape[0] if shape else 0
        shapes: dict[str, tuple[int, ...]] = {"position_ids": shape, "batch_index": (batch, 1)}
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"input_ids must be [batch, seq_len], got shape {list(shape)}")
        for name, wanted in shapes.items():
            if name in arrays and arrays[name].shape != wanted:
                raise ValueError(f"{name} must have shape {list(wanted)}, got {list(arrays[name].shape)}")
        positions = arrays["position_ids"]
        if positions.max() >= self._ctx_len or positions.min() < -1:
            raise IndexError(
                f"position_ids must lie in [-1, {self._ctx_len}), the context length given to start(); "
                f"got {positions.min()} to {positions.max()}"
            )
        if "batch_index" in arrays:
            rows = arrays["batch_index"]
            if rows.min() < 0 or rows.max() >= self._rows:
                raise IndexError(f"batch_index must lie in [0, {self._rows}), got {rows.flatten().tolist()}")
        elif batch != self._rows:
            raise ValueError(f"the batch has {batch} rows, the KV buffers were started with {self._rows}")
        if "comp_ctx_lengths" in arrays:
            lengths = arrays["comp_ctx_lengths"].shape
            if len(lengths) != 1 or not positions.max() < lengths[0] <= self._ctx_len:
                raise ValueError(
                    f"comp_ctx_lengths must have one dimension whose length lies above the largest position "
                    f"{positions.max()} and not above ctx_len={self._ctx_len}, got shape {list(lengths)}"
                )
        return arrays


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    return ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype=_NUMPY_DTYPES[dtype]))


def _int64(name: str, value: torch.Tensor | _Array) -> _Array:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a torch.Tensor or a numpy array, got {type(value).__name__}")
    if array.dtype != np.int64:
        raise TypeError(f"{name} must be int64, got {array.dtype}")
    return np.ascontiguousarray(array)
