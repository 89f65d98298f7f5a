"""Makes Triton's interpreter able to run Liger's kernels, for tests on machines without a GPU.

Triton runs ``@triton.jit`` functions in NumPy when ``TRITON_INTERPRET=1`` is set before triton is imported. Liger's
kernels need five things that it lacks:

1. Python floats handed to a kernel (epsilons, offsets, soft-caps) as tensors: kernels call ``.to(tl.float32)`` on them.
2. ``libdevice.rsqrt`` and ``libdevice.tanh``, which are empty there.
3. Arithmetic on bfloat16: the interpreter keeps it as raw 16-bit integers and computes on those. Here every operation
   goes up to float32 and is rounded to nearest even on the way back, as the hardware does.
4. Autotuned kernels without a device to measure on: the first configuration is taken.
5. ``atomic_add`` on bfloat16.

Tested with triton 3.9.0 and liger-kernel 0.8.5 (the internals it changes are the same in triton 3.7.1 and 3.8.0).
"""

import ctypes
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint16]
Floats = NDArray[np.float32]

_installed = False
_BUILDER = ("binary_op", "unary_op", "create_rsqrt", "create_fma", "create_dot", "create_atomic_rmw")
_INTERPRETER = ("_implicit_cvt", "_convert_float", "InterpreterBuilder", "TensorHandle", "_ir")
_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)


def installed() -> bool:
    """Whether `install` has been called in this process."""
    return _installed


def install() -> None:
    """Completes the interpreter; a second call does nothing. Call it before anything imports ``liger_kernel.ops``.

    Raises:
        RuntimeError: TRITON_INTERPRET=1 is not in the environment or came after triton was imported, Liger's kernels
            were imported already, or this triton's internals are not those that are known here.
    """
    global _installed
    if _installed:
        return
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("install() needs TRITON_INTERPRET=1 in the environment, before triton is imported")
    if "liger_kernel.ops" in sys.modules:
        raise RuntimeError("liger_kernel.ops was imported before install(): its kernels hold on to what was there")

    triton, tl = import_module("triton"), import_module("triton.language")
    autotuner, interpreter = import_module("triton.runtime.autotuner"), import_module("triton.runtime.interpreter")
    libdevice = import_module("triton.language.extra.libdevice")

    _require(interpreter, _INTERPRETER, triton.__version__)
    _require(interpreter.InterpreterBuilder, _BUILDER, triton.__version__)
    _require(libdevice, ("rsqrt", "tanh"), triton.__version__)
    _require(autotuner.Autotuner, ("run",), triton.__version__)
    if not _interprets(triton, tl):
        raise RuntimeError("triton was imported before TRITON_INTERPRET=1 was set; set it in the environment instead")

    _floats_as_tensors(interpreter, tl)
    _device_functions(libdevice, interpreter, tl)
    _bfloat16(interpreter, tl)
    _first_configuration(autotuner)
    _installed = True


@contextmanager
def launches() -> Iterator[Counter[str]]:
    """Counts launches by name of kernel for as long as the context lasts: whether the kernel, not upstream's
    arithmetic, gave the numbers.

    Raises:
        RuntimeError: the interpreter is not used in this process.
    """
    if not _installed:
        raise RuntimeError("launches are counted in the interpreter: call install() first")
    interpreted: Any = import_module("triton.runtime.interpreter").InterpretedFunction
    counts: Counter[str] = Counter()
    run = interpreted.run

    def counted(self: Any, *args: object, **kwargs: object) -> Any:
        counts[self.fn.__name__] += 1
        return run(self, *args, **kwargs)

    interpreted.run = counted
    try:
        yield counts
    finally:
        interpreted.run = run


def _require(owner: object, names: tuple[str, ...], version: str) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        where = getattr(owner, "__name__", repr(owner))
        raise RuntimeError(
            f"triton {version} has no {', '.join(missing)} in {where}; the interpreter is completed for the internals "
            "of triton 3.7 to 3.9 only"
        )


def _interprets(triton: ModuleType, tl: ModuleType) -> bool:
    """Whether `triton.language`'s own device functions were made with the interpreter on."""
    return type(tl.cdiv).__name__ == "InterpretedFunction" and bool(triton.knobs.runtime.interpret)


def _floats_as_tensors(interpreter: Any, tl: Any) -> None:
    convert = interpreter._implicit_cvt

    def implicit(arg: object) -> object:
        if isinstance(arg, float):
            return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
        return convert(arg)

    interpreter._implicit_cvt = implicit


def _device_functions(libdevice: Any, interpreter: Any, tl: Any) -> None:
    def rsqrt(x: Any) -> Any:
        return tl.math.rsqrt(x)

    def tanh(x: Any) -> Any:
        return tl.tensor(interpreter.TensorHandle(np.tanh(x.handle.data), x.handle.dtype), x.type)

    libdevice.rsqrt, libdevice.tanh = rsqrt, tanh


def to_float32(bits: Bits) -> Floats:
    """bfloat16, as its 16 bits -> float32, exactly."""
    wide = np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(np.shape(bits))


def to_bfloat16(values: NDArray[Any]) -> Bits:
    """float32 -> the 16 bits of bfloat16, rounded to nearest, ties to even; not-a-number stays one."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    wide = values.view(np.uint32)
    even = (wide >> np.uint32(16)) & np.uint32(1)
    rounded = ((wide + (np.uint32(0x7FFF) + even)) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(values.shape)


def _bfloat16(interpreter: Any, tl: Any) -> None:
    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    convert, binary, unary = interpreter._convert_float, builder.binary_op, builder.unary_op
    rsqrt, fma, dot, atomic = builder.create_rsqrt, builder.create_fma, builder.create_dot, builder.create_atomic_rmw
    additions = {getattr(interpreter._ir.ATOMIC_OP, name, None) for name in ("ADD", "FADD")} - {None}

    def is_bfloat16(value: Any) -> bool:
        return bool(value.dtype.scalar == tl.bfloat16)

    def floats(value: Any) -> Any:
        return to_float32(value.data) if is_bfloat16(value) else value.data

    def rounded(values: Any) -> Any:
        return handle(to_bfloat16(values), tl.bfloat16)

    def convert_float(values: Any, source: Any, target: Any, rounding: Any) -> Any:
        if source == tl.float32 and target == tl.bfloat16:
            return to_bfloat16(values)
        if source == tl.bfloat16 and target == tl.float32:
            return to_float32(values)
        return convert(values, source, target, rounding)

    def binary_op(self: Any, left: Any, right: Any, op: Callable[..., Any]) -> Any:
        if not (is_bfloat16(left) and is_bfloat16(right)) or op in _BITWISE:
            return binary(self, left, right, op)
        result = op(floats(left), floats(right))
        return handle(result, tl.int1) if result.dtype == np.bool_ else rounded(result)

    def unary_op(self: Any, value: Any, op: Callable[..., Any]) -> Any:
        return rounded(op(floats(value))) if is_bfloat16(value) else unary(self, value, op)

    def create_rsqrt(self: Any, value: Any) -> Any:
        return rounded(1 / np.sqrt(floats(value))) if is_bfloat16(value) else rsqrt(self, value)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_bfloat16(z):
            return fma(self, x, y, z)
        return rounded(floats(x) * floats(y) + floats(z))

    def create_dot(self: Any, a: Any, b: Any, acc: Any, precision: Any, imprecise: Any) -> Any:
        if not (is_bfloat16(a) or is_bfloat16(b)):
            return dot(self, a, b, acc, precision, imprecise)
        return handle(np.matmul(floats(a), floats(b), dtype=np.float32) + acc.data, acc.dtype.scalar)

    def create_atomic_rmw(self: Any, op: Any, pointer: Any, value: Any, mask: Any, semantic: Any, scope: Any) -> Any:
        if not is_bfloat16(value) or op not in additions:
            return atomic(self, op, pointer, value, mask, semantic, scope)
        addresses, addends, wanted = np.broadcast_arrays(pointer.data, floats(value), mask.data)
        before = np.zeros(addresses.shape, np.uint16)
        for i in np.ndindex(addresses.shape):  # programs run one after the other, so plain additions are atomic
            if wanted[i]:
                cell = ctypes.c_uint16.from_address(int(addresses[i]))
                before[i] = cell.value
                cell.value = int(to_bfloat16(to_float32(np.array([cell.value], np.uint16)) + addends[i])[0])
        return handle(before, tl.bfloat16)

    interpreter._convert_float = convert_float
    builder.binary_op, builder.unary_op, builder.create_rsqrt = binary_op, unary_op, create_rsqrt
    builder.create_fma, builder.create_dot, builder.create_atomic_rmw = create_fma, create_dot, create_atomic_rmw


def _first_configuration(autotuner: Any) -> None:
    run = autotuner.Autotuner.run

    def run_first(self: Any, *args: object, **kwargs: object) -> Any:
        self.configs = self.configs[:1]
        return run(self, *args, **kwargs)

    autotuner.Autotuner.run = run_first
