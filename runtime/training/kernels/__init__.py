"""Liger's Triton kernels behind upstream's arithmetic.

Each function and class here stands where upstream has a rotation, a norm, a gated activation, experts or a loss. It
runs the kernel when the module's feature is on *and* the kernel computes what upstream computes for these tensors;
otherwise upstream's own arithmetic runs. Nothing is forced: see `takes` for what every kernel needs, and each module
for what it adds. What a module is like that keeps its kernel from ever being used is reported (`not_used`).

Kernels do not support double backward (``create_graph=True``); upstream's arithmetic does.
"""

import functools
import importlib.util
import logging
import os
import sys

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

logger = logging.getLogger(__name__)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_ROW = 65536  # elements; one program holds a whole row


def available() -> str | None:
    """None when Triton kernels can run in this process, else the reason why not.

    They run compiled on a CUDA (or ROCm) device, or in Triton's interpreter once
    `runtime.training.kernels.interpreter.install` has been called.
    """
    for package in ("triton", "liger_kernel"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if os.environ.get("TRITON_INTERPRET") == "1":
        if not interpreting():
            return (
                "TRITON_INTERPRET=1 is set, but Triton's interpreter cannot run Liger's kernels as it is: call "
                "runtime.training.kernels.interpreter.install() first"
            )
        return None
    if not torch.cuda.is_available():
        return "there is no CUDA device for Triton (and TRITON_INTERPRET=1 was not set before triton was imported)"
    return None


def interpreting() -> bool:
    """Whether Triton's interpreter was made fit for the kernels (they then take CPU tensors)."""
    module = sys.modules.get(f"{__name__}.interpreter")
    return module is not None and bool(module.installed())


@functools.cache
def not_used(feature: str, where: str, reason: str) -> None:
    """Reports, once, that a feature is on for modules of a class but upstream's own arithmetic runs."""
    logger.warning("%s is switched on but not used for %s: %s", feature, where, reason)


def takes(*tensors: Tensor) -> bool:
    """Whether kernels can take these: plain, not empty, of one device and of a dtype that kernels store.

    Raises:
        RuntimeError: a CPU tensor and compiled kernels, which would read its address as a device address.
    """
    device = tensors[0].device
    for tensor in tensors:
        if tensor.is_meta or isinstance(tensor, DTensor) or tensor.numel() == 0:
            return False
        if tensor.dtype not in DTYPES or tensor.device != device:
            return False
    if device.type != "cuda" and not interpreting():
        raise RuntimeError(
            f"Liger's kernels were switched on, but got a tensor on {device}; they need "
            f"{available() or 'tensors on a CUDA device'}. Move the model to the device, or undo the patch."
        )
    return True
