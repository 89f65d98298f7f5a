"""Exports small modules as the runtime does, and runs the file in ONNX Runtime."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch


def export(
    module: torch.nn.Module,
    arguments: Sequence[Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_axes: Mapping[str, Mapping[int, str]],
    opset: int = 18,
) -> onnx.ModelProto:
    """The checked model; a TracerWarning (a value that became a constant) is an error."""
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.onnx.export(
            module.eval(),
            tuple(arguments),
            file,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: dict(axes) for name, axes in dynamic_axes.items() if name in (*inputs, *outputs)},
            opset_version=opset,
            dynamo=False,
        )
    model = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(model, full_check=True)
    return model


class Session:
    """An ONNX Runtime session over one thread."""

    def __init__(self, model: onnx.ModelProto) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._inputs = {node.name for node in self._session.get_inputs()}

    def __call__(self, **tensors: torch.Tensor) -> list[torch.Tensor]:
        feed = {name: tensor.numpy() for name, tensor in tensors.items() if name in self._inputs}
        return [torch.from_numpy(np.asarray(value)) for value in self._session.run(None, feed)]
